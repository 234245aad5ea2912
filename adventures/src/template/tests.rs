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

#[test]
fn bounds_change_no_value() {
    let source = "{{ 1 + 2 * 3 - (4 + 5) * -2 }}|{{ 'a' ~ 'b' + 'c' | upper ~ 1 ~ (1 + 1) }}|{{ not ('a' + 'b' == 'a' ~ 'b') }}|\
        {{ ([1] + [2] * 2) | join(',') }}|{{ 'x' * 3 if 1 + 1 is even else 'y' }}|{{ ('é' + 'ü')[1:] }}|\
        {{ 'u' ~ {'a' + 'b': 1 + 1}['a' ~ 'b'] }}|{% set x = 'p' ~ 'q' %}{{ x }}|{{ 2 + 3 ** 2 * 2 }}|{{ -(1 + 2) }}|\
        {% for i in [1] + [2] if i + 1 > 2 %}{{ i }}{% endfor %}|{{-  ' l' ~ 'r ' -}} |{{ range(1 + 1, 2 * 2) | sum }}|\
        {% macro f(a, b='m' ~ 'n') %}{{ a + b }}{% endmacro %}{{ f('k' ~ 'l') + f(a='o', b='p' + 'q') }}";
    let mut plain = minijinja::Environment::new();
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
