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
fn content_is_never_a_template() {
    let text = "{{ 7 * 7 }} {% for i in range(3) %}x{% endfor %} {# gone? #}";
    assert!(render(CHATML, &[(Role::User, text)]).unwrap().contains(text));
}
