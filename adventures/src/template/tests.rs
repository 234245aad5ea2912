use super::{Message, Role, Template, Tokens};

const CHATML: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}\
    {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
const GEMMA: &str = "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
    {% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
    {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
    {% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}\
    {{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}";
const MISTRAL: &str = "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}\
    {{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}\
    {{ message['content'] + eos_token}}{% endif %}{% endfor %}";

fn render(template: &str, turns: &[(Role, &str)]) -> crate::Result<String> {
    let messages: Vec<Message> = turns.iter().map(|(role, content)| Message::new(*role, *content)).collect();
    Template::new(template)?.render(&messages, Tokens { bos: "<s>", eos: "</s>" })
}

#[test]
fn real_templates_render_as_transformers_does() {
    let turns = [(Role::User, "Hi"), (Role::Assistant, "Hello."), (Role::User, " Bye ")];
    assert_eq!(
        render(CHATML, &turns).unwrap(),
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\n Bye <|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(
        render(GEMMA, &turns).unwrap(),
        "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n"
    );
    assert_eq!(render(MISTRAL, &turns).unwrap(), "<s>[INST] Hi [/INST]Hello.</s>[INST]  Bye  [/INST]");
}

#[test]
fn a_system_message_that_is_refused_or_left_out_is_folded_in() {
    let turns = [(Role::System, "Be brief."), (Role::User, "Hi")];
    assert!(
        render(CHATML, &turns).unwrap().starts_with("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<")
    );
    assert!(render(GEMMA, &turns).unwrap().starts_with("<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>"));
    assert_eq!(render(MISTRAL, &turns).unwrap(), "<s>[INST] Be brief.\n\nHi [/INST]");
}

#[test]
fn what_a_template_refuses_is_said() {
    let error = render(GEMMA, &[(Role::User, "a"), (Role::User, "b")]).unwrap_err().to_string();
    assert!(error.contains("the chat template refuses these messages"), "{error}");
    assert!(error.contains("Conversation roles must alternate"), "{error}");
}

#[test]
fn python_is_understood() {
    let source = "{{ messages[0].content.strip().upper().split(' ')[0] }}|{{ {'b': [1, 'é<'], 'a': none} | tojson }}|\
        {% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}|\
        {% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}";
    assert_eq!(
        render(source, &[(Role::User, "  hello world ")]).unwrap(),
        "HELLO|{\"b\": [1, \"é<\"], \"a\": null}|1|1"
    );
    assert_eq!(render("{{ strftime_now('%Y') | length }}", &[(Role::User, "x")]).unwrap(), "4");
    assert_eq!(render("{{ [1] | tojson(indent=2) }}", &[(Role::User, "x")]).unwrap(), "[\n  1\n]");
}

#[test]
fn hostile_templates_come_to_an_end() {
    let user = [(Role::User, "x")];
    for (source, word) in [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "does not come to an end"),
        ("{% for i in range(90000) %}{{ 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' }}{% endfor %}", "writes more than"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "refuses"),
        ("{% include '/etc/passwd' %}", "refuses"),
        ("{{ messages[7].content.nothing }}", "refuses"),
        ("{% if %}", "cannot be read"),
    ] {
        let error = render(source, &user).unwrap_err().to_string();
        assert!(error.contains(word), "{source}: {error}");
    }
    let long = format!("{{# {} #}}", "x".repeat(2 << 20));
    assert!(Template::new(&long).unwrap_err().to_string().contains("at most"));
}

#[test]
fn values_that_grow_in_memory_are_bounded() {
    let user = [(Role::User, "x")];
    let twice =
        |step: &str| format!("{{% set ns = namespace(x='ab') %}}{{% for i in range(60) %}}{step}{{% endfor %}}done");
    for source in [
        twice("{% set ns.x = ns.x ~ ns.x %}"),
        twice("{% set ns.x = (ns.x) + (ns.x) %}"),
        twice("{% if loop.first or ('a' ~ ns.x) %}{% set ns.x = [ns.x ~ (ns.x)][0] %}{% endif %}"),
        twice("{% set ns.x = {'k': ns.x * 2}.k %}"),
        twice("{% set ns.x = (ns.x if ns.x else '') ~ ns.x | trim %}"),
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}done"
            .to_owned(),
        "{{ ('a' * 10 ** 9) | length }}".to_owned(),
        "{% set y = 'a' * 2 ** 20 %}{% for i in range(999) %}{% set z = y ~ '' %}{% endfor %}".to_owned(),
        format!("{{% set x = 'ab' %}}{}", "{% set x = x ~ x %}".repeat(60)),
        "{% macro f(x, n) %}{{ f(x ~ x, n - 1) if n else '' }}{% endmacro %}{{ f('ab', 60) }}".to_owned(),
    ] {
        let error = render(&source, &user).unwrap_err().to_string();
        let bounded = error.contains("builds values of more than") || error.contains("is too large");
        assert!(bounded || error.contains("recursion limit"), "{source}: {error}");
    }
}

/// Renders, or fails to compile or render, on a thread with the stack that threads have.
fn outcome(source: String) -> String {
    let work = move || match render(&source, &[(Role::User, "x")]) {
        Ok(text) => format!("text of {} bytes", text.len()),
        Err(e) => e.to_string(),
    };
    std::thread::Builder::new().stack_size(2 << 20).spawn(work).unwrap().join().unwrap()
}

#[test]
fn chains_do_not_overflow_the_stack() {
    let words = [
        "not ",
        "-",
        "1 + ",
        "x ~ ",
        "x and ",
        "x or ",
        "1 if x else ",
        "2 ** ",
        "x in ",
        "1 < ",
        "(not ",
        "[-",
        "{1: not ",
    ];
    for (start, word, end) in words.iter().map(|word| ("{{ ", *word, "x }}")).chain([
        ("{{ x", ".x", " }}"),
        ("{{ x", "[0]", " }}"),
        ("{{ x", "()", " }}"),
        ("{{ x", " | list", " }}"),
        ("{{ x", " | d(1, 2)", " }}"),
        ("{{ x", " is defined", " }}"),
        ("{% set x", " | upper", " %}a{% endset %}"),
        ("{% filter upper", " | upper", " %}a{% endfilter %}"),
        ("{% if x %}", "{% elif x %}", "{% endif %}"),
        ("", "{% if x %}", ""),
        ("", "{% for m in messages %}", ""),
    ]) {
        // At the bound it is read, or refused by the engine's own.
        outcome(format!("{start}{}{end}", word.repeat(120)));
        for times in [300, 20_000] {
            let said = outcome(format!("{start}{}{end}", word.repeat(times)));
            assert!(said.contains("cannot be read"), "{word} {times} times: {said}");
        }
    }
    // What a list holds is no chain.
    let list = format!("{{{{ [{}] | length }}}}", "{'a': 'b'}, ".repeat(2000));
    assert_eq!(outcome(list), "text of 4 bytes");
}

#[test]
fn nothing_that_is_built_escapes_the_bounds() {
    let steps =
        |step: &str| format!("{{% set ns = namespace(x='\\\\') %}}{{% for i in range(60) %}}{step}{{% endfor %}}");
    let nested = "{% set x = ['a'] %}".to_owned() + &"{% set x = [x, x] %}".repeat(40);
    let long = "x".repeat(90_000);
    for source in [
        "{% set x %}ab{% endset %}".to_owned() + &"{% set x %}{{ x }}{{ x }}{% endset %}".repeat(60),
        steps("{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"),
        steps("{% set ns.x = ns.x | tojson %}"),
        steps("{% set ns.x = '%s%s' | format(ns.x, ns.x) %}"),
        steps("{% set ns.x = '{}{}'.format(ns.x, ns.x) %}"),
        steps("{% set ns.x = [ns.x, ns.x] | join %}"),
        steps("{% set ns.x = ''.join([ns.x, ns.x]) %}"),
        steps("{% set ns.x = ns.x.replace('', ns.x) %}"),
        steps("{% set ns.x = {'a': ns.x, 'b': ns.x} %}"),
        steps("{% set ns.x = dict(a=ns.x, b=ns.x) %}"),
        steps("{% set ns.x = (ns.x, ns.x) %}"),
        format!("{{% set x %}}{{% for i in range(90000) %}}{long}{{% endfor %}}{{% endset %}}"),
        format!(
            "{{% macro f() %}}{{% for i in range(90000) %}}{long}{{% endfor %}}{{% endmacro %}}{{{{ f() | length }}}}"
        ),
        format!("{{% filter upper %}}{{% for i in range(90000) %}}{long}{{% endfor %}}{{% endfilter %}}"),
        format!("{{% set x %}}{{% for i in range(90000) %}}{}{{% endfor %}}{{% endset %}}", " ".repeat(9000)),
        nested.clone() + "{{ x | tojson | length }}",
        nested.clone() + "{{ x | string | length }}",
        nested.clone() + "{{ (x ~ '') | length }}",
        nested.clone() + "{{ x == x }}",
        "{% set ns = namespace(x=[]) %}{% for i in range(9000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}".into(),
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns | tojson }}".into(),
        "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns }}".into(),
        "{% set ns = namespace() %}{% set ns.x, y = ns, ns %}{{ ns ~ '' }}".into(),
        "{{ ('a' * 9999) * 9999 }}".into(),
        "{{ 9999 * ('a' * 9999) }}".into(),
        "{{ ([1] * 9999 * 9999) | length }}".into(),
        "{{ '%999999999d' | format(1) }}".into(),
        "{{ '{:>999999999}'.format(1) }}".into(),
        "{{ ('a' * 99999).replace('a', 'b' * 99999) }}".into(),
        "{{ ('a' * 99999) | replace('a', 'b' * 99999) }}".into(),
        "{{ ('x' * 999999).join(range(9999)) }}".into(),
        "{{ range(9999) | join('x' * 999999) }}".into(),
        "{{ range(9999) | join(d='x' * 999999) }}".into(),
        "{{ 'a\nb' | indent(2000000000) }}".into(),
        "{{ 'a\nb' | indent(width=2000000000) }}".into(),
        "{{ [1] | batch(2000000000, 0) }}".into(),
        "{{ [1] | slice(2000000000) }}".into(),
        "{% set x = 'a' * 999999 %}{% for i in range(9000) %}{% set y = x | list %}{% endfor %}".into(),
        "{{ strftime_now('%Y' * 9999) }}".into(),
    ] {
        let shown = source.chars().take(90).collect::<String>();
        let said = outcome(source);
        assert!(!said.starts_with("text of"), "{shown}: {said}");
        assert!(said.len() < 600, "{shown}: an error of {} bytes", said.len());
    }
    assert!(outcome("{{ raise_exception('x' * 99999) }}".into()).len() < 600, "what a template says is cut");
}

#[test]
fn bounds_change_no_value() {
    let source = "{{ 1 + 2 * 3 - (4 + 5) * -2 }}|{{ 'a' ~ 'b' + 'c' | upper ~ 1 ~ (1 + 1) }}|{{ not ('a' + 'b' == 'a' ~ 'b') }}|\
        {{ ([1] + [2] * 2) | join(',') }}|{{ 'x' * 3 if 1 + 1 is even else 'y' }}|{{ ('é' + 'ü')[1:] }}|\
        {{ 'u' ~ {'a' + 'b': 1 + 1}['a' ~ 'b'] }}|{% set x = 'p' ~ 'q' %}{{ x }}|{{ 2 + 3 ** 2 * 2 }}|{{ -(1 + 2) }}|\
        {% for i in [1] + [2] if i + 1 > 2 %}{{ i }}{% endfor %}|{{-  ' l' ~ 'r ' -}} |{{ range(1 + 1, 2 * 2) | sum }}|\
        {% macro f(a, b='m' ~ 'n') %}{{ a + b }}{% endmacro %}{{ f('k' ~ 'l') + f(a='o', b='p' + 'q') }}|\
        {% set t %}\n  {{ (1, 2) }}  a long text that is counted where it becomes a value, and white space after it   \n  {% endset %}[{{ t }}]|\
        {% set ns = namespace(a=1) %}{% set ns.a = [1, (2, 3), {'k': [4]}][1][0] * (ns.a + 1) %}{{ ns.a }}|{{ (2) * (3) * -1 }}|\
        {{ {'a': 1, 'b': [2]}.b[0] }}|{{ [3, 4][-1] * [1, 2] | length }}|{{ ['a', 'b'] | map('upper') | join('-') }}|\
        {{ 'a-b'.split('-') | last ~ 'x'.replace('x', 'y') }}|{% for a, b in {'k': 'v'} | items %}{{ a }}{{ b }}{% endfor %}|\
        {% if 1 in [1, 2] and 'a' not in ('b', 'c') %}in{% endif %}|{{ '%03d' | format(7) }}|{{ {'a': [1]} | tojson }}";
    let mut plain = minijinja::Environment::new();
    plain.set_syntax(minijinja::syntax::SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().unwrap());
    super::python::install(&mut plain);
    plain.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    let expected = plain.render_str(source, ()).unwrap();
    assert!(expected.starts_with("25|abC12|"), "{expected}");
    assert_eq!(render(source, &[(Role::User, "u")]).unwrap(), expected);
}

#[test]
fn content_is_never_a_template() {
    let text = "{{ 7 * 7 }} {% for i in range(3) %}x{% endfor %} {# gone? #}";
    assert!(render(CHATML, &[(Role::User, text)]).unwrap().contains(text));
}
