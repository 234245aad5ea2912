//! Bounds on what a template builds before it writes it.
//!
//! The engine counts steps, and forty steps of `x ~ x` make a terabyte. So whatever makes a value is wrapped, in the template's
//! source, in a filter that refuses one that is too large (see [`super::limits`]): `a ~ b` becomes `(a ~ b)|_bounded`. Nor does
//! the engine bound how long a chain of operations may be, and its parser calls itself for each.

use super::limits::{BOUNDED, KEPT, SPENT, TIMES};
use minijinja::machinery::{Span, Token, ast, parse, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Error, ErrorKind};

/// How far an expression may go without a comma: what parses, compiles and drops it calls itself as often.
const MAX_CHAIN: usize = 256;
const MAX_ELIFS: usize = 256;
/// Text of the template itself that is counted where it goes into a value.
const LONG_TEXT: usize = 64;
/// White space cannot be counted without changing what is trimmed.
const MAX_BLANK: usize = 256;

fn refuse(message: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::SyntaxError, message.to_string())
}

/// Returns `source` with its growing operations wrapped.
pub(super) fn wrap(source: &str, syntax: SyntaxConfig) -> Result<String, Error> {
    let mut edits = scan(source, syntax.clone())?;
    let mut found = Operations { source, captured: false, edits: Vec::new(), blank: None };
    found.statement(&parse(source, "<string>", syntax)?);
    if let Some(len) = found.blank {
        return Err(refuse(format_args!("{len} bytes of white space, at most {MAX_BLANK} are allowed")));
    }
    edits.append(&mut found.edits);
    // At one place: what closes an operation, innermost first, then what goes on, then what opens one, outermost first. The
    // order in which they were found does it: whole values were found first, and an operation before what it is made of.
    edits.sort_by_key(|edit| (edit.at, edit.rank));
    let mut wrapped = String::with_capacity(2 * source.len());
    let mut done = 0;
    for edit in edits {
        wrapped.push_str(&source[done..edit.at]);
        wrapped.push_str(&edit.text);
        done = edit.at + edit.replaced;
    }
    wrapped.push_str(&source[done..]);
    Ok(wrapped)
}

/// A piece of source to put in, instead of `replaced` bytes.
struct Edit {
    at: usize,
    /// Closing pieces come before opening ones.
    rank: i64,
    replaced: usize,
    text: String,
}

/// Reads tokens alone, before anything that calls itself does: refuses chains without end, and returns the edits around what is
/// printed and what a namespace is given.
fn scan(source: &str, syntax: SyntaxConfig) -> Result<Vec<Edit>, Error> {
    let mut edits = Vec::new();
    // How long the chain is in each bracket that is open.
    let mut chains = vec![0];
    let mut elifs = 0;
    let mut tag: Vec<Word<'_>> = Vec::new();
    let mut opened = 0;
    let mut assigned = None;
    for token in tokenize(source, false, syntax) {
        let (token, span) = token?;
        let (start, end) = (span.start_offset as usize, span.end_offset as usize);
        match &token {
            Token::VariableStart | Token::BlockStart => {
                chains = vec![0];
                tag.clear();
                assigned = None;
                opened = end;
                continue;
            }
            Token::VariableEnd => {
                // These are what the engine calls in a way of its own.
                let special = matches!(tag[..], [Word::Name("super" | "loop" | "caller"), Word::Open, ..]);
                if !special {
                    edits.push(Edit { at: opened, rank: i64::MIN, replaced: 0, text: "(".into() });
                    edits.push(Edit { at: start, rank: 0, replaced: 0, text: format!(")|{BOUNDED}") });
                }
                continue;
            }
            Token::BlockEnd => {
                if let Some(at) = assigned {
                    edits.push(Edit { at, rank: i64::MIN, replaced: 0, text: "(".into() });
                    edits.push(Edit { at: start, rank: 0, replaced: 0, text: format!(")|{KEPT}") });
                }
                continue;
            }
            Token::Assign => {
                let namespace = matches!(tag[..], [Word::Name("set"), Word::Name(_), Word::Dot, ..]);
                if chains.len() == 1 && assigned.is_none() && namespace {
                    assigned = Some(end);
                }
            }
            Token::Ident("elif") if tag.is_empty() => elifs += 1,
            _ => {}
        }
        let top = chains.len() - 1;
        match token {
            Token::ParenOpen | Token::BracketOpen | Token::BraceOpen => chains.push(0),
            Token::ParenClose | Token::BracketClose | Token::BraceClose => {
                if top > 0 {
                    chains.pop();
                }
                *chains.last_mut().expect("the first stays; this is a bug") += 1;
            }
            Token::Comma => chains[top] = 0,
            Token::Str(_) | Token::String(_) | Token::Int(_) | Token::Float(_) | Token::Colon => {}
            Token::Ident(name) if !matches!(name, "not" | "and" | "or" | "is" | "if" | "in") => {}
            _ => chains[top] += 1,
        }
        if chains.iter().sum::<usize>() > MAX_CHAIN {
            return Err(refuse(format_args!("an expression of more than {MAX_CHAIN} operations")));
        }
        if elifs > MAX_ELIFS {
            return Err(refuse(format_args!("more than {MAX_ELIFS} elifs")));
        }
        if tag.len() < 3 {
            tag.push(match token {
                Token::Ident(name) => Word::Name(name),
                Token::Dot => Word::Dot,
                Token::ParenOpen => Word::Open,
                _ => Word::Other,
            });
        }
    }
    Ok(edits)
}

/// The first words of a tag.
enum Word<'a> {
    Name(&'a str),
    Dot,
    Open,
    Other,
}

/// Finds the operations that make a value grow.
struct Operations<'a> {
    source: &'a str,
    /// Whether what is written here becomes a value.
    captured: bool,
    edits: Vec<Edit>,
    /// The length of white space that is too long.
    blank: Option<usize>,
}

impl Operations<'_> {
    fn put(&mut self, at: usize, rank: i64, replaced: usize, text: impl Into<String>) {
        self.edits.push(Edit { at, rank, replaced, text: text.into() });
    }

    /// Puts `before` and `after` around a part of the source.
    fn around(&mut self, span: Span, before: &str, after: &str) {
        let (start, end) = (i64::from(span.start_offset), i64::from(span.end_offset));
        // Of those that start together the longest opens first; of those that end together the shortest closes first.
        self.put(start as usize, i64::MAX / 2 - end, 0, before);
        self.put(end as usize, -1 - start, 0, after);
    }

    fn captured(&mut self, body: &[ast::Stmt<'_>]) {
        let before = std::mem::replace(&mut self.captured, true);
        self.statements(body);
        self.captured = before;
    }

    /// Counts a text where it goes into a value, before its last letter: white space at its edges may be trimmed.
    fn text(&mut self, text: &str) {
        if !self.captured || text.len() <= LONG_TEXT {
            return;
        }
        let at = text.as_ptr() as usize - self.source.as_ptr() as usize;
        match text.char_indices().rev().find(|(_, c)| !c.is_whitespace()) {
            Some((last, _)) => self.put(at + last, 0, 0, format!("{{{{''|{SPENT}({})}}}}", text.len())),
            None if text.len() > MAX_BLANK => self.blank = Some(text.len()),
            None => {}
        }
    }

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
                self.captured(&s.body);
            }
            S::EmitRaw(s) => self.text(s.raw),
            S::AutoEscape(s) => self.statements(&s.body),
            S::FilterBlock(s) => {
                self.expression(&s.filter);
                self.captured(&s.body);
            }
            S::Block(s) => self.statements(&s.body),
            S::Macro(s) => {
                self.expressions(&s.defaults);
                self.captured(&s.body);
            }
            S::CallBlock(s) => {
                self.call(&s.call);
                self.captured(&s.macro_decl.body);
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
                match e.op {
                    ast::BinOpKind::Add | ast::BinOpKind::Concat => self.around(e.span(), "(", &format!(")|{BOUNDED}")),
                    ast::BinOpKind::Mul => {
                        let from = e.left.span().end_offset as usize;
                        let star = self.source.get(from..).and_then(|rest| rest.find('*'));
                        let star = from + star.expect("a product has its operator; this is a bug");
                        self.around(e.span(), &format!("{TIMES}("), ")");
                        self.put(star, 0, 1, ",");
                    }
                    _ => {}
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
                let (start, end) = (i64::from(e.span().start_offset), e.span().end_offset as usize);
                self.put(end, -1 - start, 0, format!("|{BOUNDED}"));
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
            E::List(e) => {
                self.around(e.span(), "((", &format!(")|{BOUNDED})"));
                self.expressions(&e.items);
            }
            E::Tuple(e) => {
                self.around(e.span(), "((", &format!(")|{BOUNDED})"));
                self.expressions(&e.items);
            }
            E::Map(e) => {
                self.around(e.span(), "((", &format!(")|{BOUNDED})"));
                self.expressions(&e.keys);
                self.expressions(&e.values);
            }
            E::Var(_) | E::Const(_) => {}
        }
    }
}
