//! Bounds on what a template builds before it writes it.
//!
//! The engine counts steps, and forty steps of `x ~ x` make a terabyte. So each `+`, `*` and `~` of a template is wrapped, in
//! its source, in a filter that refuses a value that is too large: `a ~ b` becomes `(a ~ b)|_bounded`.

use minijinja::machinery::{ast, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, Value};
use std::sync::atomic::{AtomicUsize, Ordering};

const FILTER: &str = "_bounded";
/// How many times over a template may build what it may write: it adds to a text message by message.
const TIMES: usize = 64;

/// Returns `source` with its growing operations wrapped.
pub(super) fn wrap(source: &str, syntax: SyntaxConfig) -> Result<String, Error> {
    let mut found = Operations(Vec::new());
    found.statement(&parse(source, "<string>", syntax)?);
    let mut edits: Vec<(usize, &str)> = Vec::with_capacity(2 * found.0.len());
    let close = format!(")|{FILTER}");
    for (start, end) in found.0 {
        edits.push((end, &close));
        edits.push((start, "("));
    }
    // Of edits at one place all are alike: no operation ends where another starts.
    edits.sort_by_key(|(at, _)| *at);
    let mut wrapped = String::with_capacity(source.len() + edits.len() * close.len());
    let mut done = 0;
    for (at, text) in edits {
        wrapped.push_str(&source[done..at]);
        wrapped.push_str(text);
        done = at;
    }
    wrapped.push_str(&source[done..]);
    Ok(wrapped)
}

/// Gives the filter to an environment: no value may be longer than `limit`, nor all together than [`TIMES`] of it.
pub(super) fn install(environment: &mut Environment<'_>, limit: usize) {
    let all = AtomicUsize::new(0);
    environment.add_filter(FILTER, move |value: Value| -> Result<Value, Error> {
        let size = match value.kind() {
            ValueKind::String => value.as_str().map(str::len),
            ValueKind::Seq | ValueKind::Iterable => value.len(),
            _ => None,
        };
        let size = size.unwrap_or(0);
        let before = all.fetch_add(size, Ordering::Relaxed);
        if size > limit || before.saturating_add(size) > limit.saturating_mul(TIMES) {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("it builds values of more than {limit} bytes"),
            ));
        }
        Ok(value)
    });
}

/// Where the operations that make a value grow lie in the source.
struct Operations(Vec<(usize, usize)>);

impl Operations {
    fn statements(&mut self, all: &[ast::Stmt<'_>]) {
        for statement in all {
            self.statement(statement);
        }
    }

    fn statement(&mut self, statement: &ast::Stmt<'_>) {
        use ast::Stmt as S;
        match statement {
            S::Template(s) => self.statements(&s.children),
            S::EmitExpr(s) => self.expression(&s.expr),
            S::ForLoop(s) => {
                self.expression(&s.iter);
                self.maybe(s.filter_expr.as_ref());
                self.statements(&s.body);
                self.statements(&s.else_body);
            }
            S::IfCond(s) => {
                self.expression(&s.expr);
                self.statements(&s.true_body);
                self.statements(&s.false_body);
            }
            S::WithBlock(s) => {
                for (_, value) in &s.assignments {
                    self.expression(value);
                }
                self.statements(&s.body);
            }
            S::Set(s) => self.expression(&s.expr),
            S::SetBlock(s) => {
                self.maybe(s.filter.as_ref());
                self.statements(&s.body);
            }
            S::AutoEscape(s) => self.statements(&s.body),
            S::FilterBlock(s) => {
                self.expression(&s.filter);
                self.statements(&s.body);
            }
            S::Block(s) => self.statements(&s.body),
            S::Macro(s) => {
                self.expressions(&s.defaults);
                self.statements(&s.body);
            }
            S::CallBlock(s) => {
                self.call(&s.call);
                self.statements(&s.macro_decl.body);
            }
            S::Do(s) => self.call(&s.call),
            // Other files are never loaded, and the rest holds no values.
            _ => {}
        }
    }

    fn expressions(&mut self, all: &[ast::Expr<'_>]) {
        for expression in all {
            self.expression(expression);
        }
    }

    fn maybe(&mut self, expression: Option<&ast::Expr<'_>>) {
        if let Some(expression) = expression {
            self.expression(expression);
        }
    }

    fn call(&mut self, call: &ast::Call<'_>) {
        self.expression(&call.expr);
        self.arguments(&call.args);
    }

    fn arguments(&mut self, all: &[ast::CallArg<'_>]) {
        use ast::CallArg as A;
        for argument in all {
            let (A::Pos(value) | A::Kwarg(_, value) | A::PosSplat(value) | A::KwargSplat(value)) = argument;
            self.expression(value);
        }
    }

    fn expression(&mut self, expression: &ast::Expr<'_>) {
        use ast::Expr as E;
        match expression {
            E::BinOp(e) => {
                if matches!(e.op, ast::BinOpKind::Add | ast::BinOpKind::Mul | ast::BinOpKind::Concat) {
                    self.0.push((e.span().start_offset as usize, e.span().end_offset as usize));
                }
                self.expression(&e.left);
                self.expression(&e.right);
            }
            E::UnaryOp(e) => self.expression(&e.expr),
            E::Compare(e) => {
                self.expression(&e.expr);
                for op in &e.ops {
                    self.expression(&op.expr);
                }
            }
            E::IfExpr(e) => {
                self.expression(&e.test_expr);
                self.expression(&e.true_expr);
                self.maybe(e.false_expr.as_ref());
            }
            E::Slice(e) => {
                self.expression(&e.expr);
                for part in [&e.start, &e.stop, &e.step] {
                    self.maybe(part.as_ref());
                }
            }
            E::Filter(e) => {
                self.maybe(e.expr.as_ref());
                self.arguments(&e.args);
            }
            E::Test(e) => {
                self.expression(&e.expr);
                self.arguments(&e.args);
            }
            E::GetAttr(e) => self.expression(&e.expr),
            E::GetItem(e) => {
                self.expression(&e.expr);
                self.expression(&e.subscript_expr);
            }
            E::Call(e) => self.call(e),
            E::List(e) => self.expressions(&e.items),
            E::Tuple(e) => self.expressions(&e.items),
            E::Map(e) => {
                self.expressions(&e.keys);
                self.expressions(&e.values);
            }
            E::Var(_) | E::Const(_) => {}
        }
    }
}
