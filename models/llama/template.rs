//! What the model reads: the prompt in the model's own chat template (Jinja), or in the caller's `prompt_template`
//! (Python's `str.format`). Text in, text out; refuses to know tokens.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use prediction::PredictError;

/// What `{system_prompt}` of a `prompt_template` means when the caller gave none: the hosted model's default.
pub const SYSTEM_PROMPT: &str = "You are a helpful assistant";

const NAME: &str = "chat";

/// A compiled chat template.
#[derive(Debug)]
pub struct Chat {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl Chat {
    /// Checks the template's grammar. `bos` and `eos` are the texts of these tokens, or empty.
    pub fn new(source: String, bos: String, eos: String) -> Result<Self, String> {
        let mut environment = Environment::new();
        // As transformers renders them.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| error.to_string())?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |why: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, why))
        });
        environment.add_function("strftime_now", |format: String| -> Result<String, Error> {
            jiff::fmt::strtime::format(format.as_bytes(), &jiff::Zoned::now())
                .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
        });
        environment
            .add_template_owned(NAME, source)
            .map_err(|error| format!("The model's chat template cannot be read: {}", first_line(&error)))?;
        Ok(Self { environment, bos, eos })
    }

    /// One user message, after a system message if there is one, with the assistant's turn opened.
    pub fn render(&self, system: Option<&str>, prompt: &str) -> Result<String, PredictError> {
        let message = |role: &str, content: &str| context! { role, content };
        let messages: Vec<Value> =
            system.map(|text| message("system", text)).into_iter().chain([message("user", prompt)]).collect();
        let template = self.environment.get_template(NAME).expect("added by new");
        let values = context! {
            messages, add_generation_prompt => true, bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
        };
        template.render(values).map_err(|error| {
            let why = error.detail().map_or_else(|| first_line(&error), str::to_owned);
            PredictError::FixInput(format!("The model's chat template refuses this input: {why} (E1004)"))
        })
    }
}

fn first_line(error: &Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// Python's `str.format` with the names `prompt` and `system_prompt`; `{{` and `}}` stand for braces.
pub fn fill(template: &str, system: Option<&str>, prompt: &str) -> Result<String, PredictError> {
    if !template.contains("{prompt}") {
        let why = "Bad prompt template: it must contain \"{prompt}\" (E1003)";
        return Err(PredictError::FixInput(why.into()));
    }
    let wrong = |why: String| PredictError::FixInput(format!("Prompt template error: {why} (E1004)"));
    let mut text = String::with_capacity(template.len() + prompt.len());
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        text.push_str(&rest[..at]);
        let (brace, after) = rest[at..].split_at(1);
        if let Some(after) = after.strip_prefix(brace) {
            text.push_str(brace);
            rest = after;
            continue;
        }
        if brace == "}" {
            return Err(wrong("a single \"}\" stands in it; write \"}}\" for a brace".into()));
        }
        let Some((name, after)) = after.split_once('}') else {
            return Err(wrong("a \"{\" is never closed; write \"{{\" for a brace".into()));
        };
        text.push_str(match name {
            "prompt" => prompt,
            "system_prompt" => system.unwrap_or(SYSTEM_PROMPT),
            other => {
                return Err(wrong(format!("\"{{{other}}}\" is neither \"{{prompt}}\" nor \"{{system_prompt}}\"")));
            }
        });
        rest = after;
    }
    text.push_str(rest);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMOLLM2: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
        {{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}\
        {{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

    fn render(source: &str, system: Option<&str>, prompt: &str) -> Result<String, PredictError> {
        Chat::new(source.into(), "<s>".into(), "</s>".into()).unwrap().render(system, prompt)
    }

    #[test]
    fn the_templates_own_system_text_yields_to_the_callers() {
        let user = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(render(SMOLLM2, None, "Hi").unwrap(), format!("<|im_start|>system\nBe kind<|im_end|>\n{user}"));
        assert_eq!(render(SMOLLM2, Some("Yo"), "Hi").unwrap(), format!("<|im_start|>system\nYo<|im_end|>\n{user}"));
    }

    #[test]
    fn python_methods_and_special_words_are_known() {
        let source = "{{ bos_token }}{{ messages[0]['content'].strip().upper() }}{{ eos_token }}\
            {% set ns = namespace(n=0) %}{% for k, v in messages[0].items() %}{% set ns.n = ns.n + 1 %}{% endfor %}\
            {{ ns.n }}{% if 'a'.startswith('a') %}!{% endif %}{{ messages[0] | tojson | length > 5 }}";
        assert_eq!(render(source, None, " hi ").unwrap(), "<s>HI</s>2!True");
    }

    #[test]
    fn blocks_eat_their_line_as_transformers_has_it() {
        assert_eq!(render("a\n  {% if true %}\nb\n  {% endif %}\nc", None, "").unwrap(), "a\nb\nc");
    }

    #[test]
    fn today_has_a_date() {
        assert_eq!(render("{{ strftime_now('%d %b %Y') | length }}", None, "").unwrap(), "11");
    }

    #[test]
    fn what_a_template_raises_is_told() {
        let source = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}";
        let why = render(source, Some("Yo"), "Hi").unwrap_err().to_string();
        assert_eq!(why, "The model's chat template refuses this input: no system here (E1004)");
    }

    #[test]
    fn a_broken_chat_template_is_the_models_fault() {
        let why = Chat::new("{% if %}".into(), String::new(), String::new()).unwrap_err();
        assert!(why.starts_with("The model's chat template cannot be read: "), "{why}");
    }

    #[test]
    fn a_prompt_template_is_a_python_format() {
        let filled = |template| fill(template, Some("Sys"), "Say {x}").unwrap();
        assert_eq!(filled("[{system_prompt}] {prompt}"), "[Sys] Say {x}");
        assert_eq!(filled("{{\"q\": \"{prompt}\"}}"), "{\"q\": \"Say {x}\"}");
        assert_eq!(fill("{system_prompt}: {prompt}", None, "p").unwrap(), "You are a helpful assistant: p");
    }

    #[test]
    fn prompt_templates_are_refused_in_the_hosted_codes() {
        for (template, code) in [
            ("no place", "(E1003)"),
            ("{system_prompt} only", "(E1003)"),
            ("{prompt} {user}", "(E1004)"),
            ("{prompt} {0}", "(E1004)"),
            ("{prompt} {}", "(E1004)"),
            ("{prompt} {", "(E1004)"),
            ("{prompt} }", "(E1004)"),
            ("{prompt} {prompt!r}", "(E1004)"),
        ] {
            let why = fill(template, None, "p").unwrap_err();
            assert!(matches!(&why, PredictError::FixInput(text) if text.ends_with(code)), "{template}: {why}");
        }
    }
}
