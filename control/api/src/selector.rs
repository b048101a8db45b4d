//! Which objects a request means: by their labels, or by a few of their fields.

use std::{collections::BTreeMap, fmt};

use serde_json::{Map, Value};

use crate::{
    FieldError, Resource,
    field::{Path, quote},
    meta,
};

/// How a label is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    /// The label is one of the values.
    In,
    /// The label is none of the values, or is not there.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
    /// The label is a number above the value.
    GreaterThan,
    /// The label is a number below the value.
    LessThan,
}

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// How it is compared.
    pub operator: Operator,
    /// With what.
    pub values: Vec<String>,
    /// Written with `=` or `!=`, not with `in` or `notin`.
    is_equality: bool,
}

/// Conditions on labels; all of them must hold, and none holds for everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    matches_nothing: bool,
}

impl LabelSelector {
    /// Matches every object.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Matches no object.
    pub fn nothing() -> Self {
        Self {
            requirements: Vec::new(),
            matches_nothing: true,
        }
    }

    /// Reads `a=b,c!=d,e in (x,y),f notin (z),g,!h`.
    ///
    /// # Errors
    /// When the text is no selector; the message is for the user.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser {
            tokens: tokenize(text)?,
            at: 0,
        };
        let mut requirements = Vec::new();
        if matches!(parser.peek(), Token::End) {
            return Ok(Self::default());
        }
        loop {
            requirements.push(
                parser
                    .requirement()
                    .map_err(|e| format!("unable to parse requirement: {e}"))?,
            );
            match parser.next() {
                Token::End => break,
                Token::Comma => match parser.peek() {
                    Token::Word(_) | Token::Not => {}
                    other => {
                        return Err(format!("found '{other}', expected: identifier after ','"));
                    }
                },
                other => return Err(format!("found '{other}', expected: ',' or 'end of string'")),
            }
        }
        Ok(Self {
            requirements,
            matches_nothing: false,
        })
    }

    /// From a `metav1.LabelSelector`; null matches nothing and `{}` everything.
    ///
    /// # Errors
    /// When an expression makes no sense; the message is for the user.
    pub fn from_value(value: &Value) -> Result<Self, String> {
        let Some(map) = value.as_object() else {
            return Ok(Self::nothing());
        };
        let labels = map.get("matchLabels").and_then(Value::as_object);
        let labels = labels.into_iter().flatten().map(|(key, value)| {
            let value = value.as_str().unwrap_or_default();
            (key.clone(), value.to_owned())
        });
        let expressions = map.get("matchExpressions").and_then(Value::as_array);
        let expressions = expressions.into_iter().flatten().map(|expression| {
            let text = |field: &str| expression.get(field).and_then(Value::as_str);
            let values = expression.get("values").and_then(Value::as_array);
            let values = values
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect();
            let key = text("key").unwrap_or_default().to_owned();
            (key, text("operator").unwrap_or_default(), values)
        });
        Self::from_parts(labels, expressions)
    }

    /// From what a `metav1.LabelSelector` has: `matchLabels`, and key, operator and values of `matchExpressions`.
    ///
    /// # Errors
    /// As [`Self::from_value`].
    pub fn from_parts<'a>(
        labels: impl IntoIterator<Item = (String, String)>,
        expressions: impl IntoIterator<Item = (String, &'a str, Vec<String>)>,
    ) -> Result<Self, String> {
        let equal = |(key, value)| Requirement {
            key,
            operator: Operator::In,
            values: vec![value],
            is_equality: true,
        };
        let mut requirements: Vec<Requirement> = labels.into_iter().map(equal).collect();
        for (key, operator, values) in expressions {
            let operator = match operator {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    return Err(format!(
                        "{} is not a valid label selector operator",
                        quote(other)
                    ));
                }
            };
            requirements.push(Requirement {
                key,
                operator,
                values,
                is_equality: false,
            });
        }
        for requirement in &requirements {
            requirement.check()?;
        }
        Ok(Self {
            requirements,
            matches_nothing: false,
        })
    }

    /// Exactly these labels.
    pub fn from_labels(labels: &Map<String, Value>) -> Self {
        let requirements = labels
            .iter()
            .map(|(key, value)| Requirement {
                key: key.clone(),
                operator: Operator::In,
                values: vec![value.as_str().unwrap_or_default().to_owned()],
                is_equality: true,
            })
            .collect();
        Self {
            requirements,
            matches_nothing: false,
        }
    }

    /// Whether it matches every object.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty() && !self.matches_nothing
    }

    /// The conditions.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether these labels meet all conditions.
    pub fn matches(&self, labels: Option<&Map<String, Value>>) -> bool {
        !self.matches_nothing
            && self
                .requirements
                .iter()
                .all(|requirement| requirement.matches(labels))
    }

    /// As [`Self::matches`], for labels that are not JSON.
    pub fn matches_labels(&self, labels: &BTreeMap<String, String>) -> bool {
        let label = |key: &str| labels.get(key).map(String::as_str);
        !self.matches_nothing
            && self
                .requirements
                .iter()
                .all(|requirement| requirement.is_met_by(label(&requirement.key)))
    }
}

impl Requirement {
    fn check(&self) -> Result<(), String> {
        let path = Path::new("key");
        if let Some(text) = meta::qualified_name(&self.key).into_iter().next() {
            return Err(FieldError::invalid(&path, self.key.as_str(), text).to_string());
        }
        let values = Path::new("values");
        let shown = || Value::from(self.values.clone());
        let trouble = match self.operator {
            Operator::In | Operator::NotIn if self.values.is_empty() => {
                Some("for 'in', 'notin' operators, values set can't be empty")
            }
            Operator::Exists | Operator::DoesNotExist if !self.values.is_empty() => {
                Some("values set must be empty for exists and does not exist")
            }
            Operator::GreaterThan | Operator::LessThan
                if self.values.len() != 1 || self.values[0].parse::<i64>().is_err() =>
            {
                Some("for 'Gt', 'Lt' operators, the value must be an integer")
            }
            _ => None,
        };
        if let Some(trouble) = trouble {
            return Err(FieldError::invalid(&values, shown(), trouble).to_string());
        }
        for (i, value) in self.values.iter().enumerate() {
            if let Some(text) = meta::label_value(value).into_iter().next() {
                let at = values.index(i);
                return Err(
                    FieldError::invalid(&at.key(&self.key), value.as_str(), text).to_string(),
                );
            }
        }
        Ok(())
    }

    fn matches(&self, labels: Option<&Map<String, Value>>) -> bool {
        let label = labels
            .and_then(|labels| labels.get(&self.key))
            .and_then(Value::as_str);
        self.is_met_by(label)
    }

    fn is_met_by(&self, label: Option<&str>) -> bool {
        let number = || label.and_then(|label| label.parse::<i64>().ok());
        let bound = || {
            self.values
                .first()
                .and_then(|value| value.parse::<i64>().ok())
        };
        match self.operator {
            Operator::In => {
                label.is_some_and(|label| self.values.iter().any(|value| value == label))
            }
            Operator::NotIn => {
                label.is_none_or(|label| self.values.iter().all(|value| value != label))
            }
            Operator::Exists => label.is_some(),
            Operator::DoesNotExist => label.is_none(),
            Operator::GreaterThan => number()
                .zip(bound())
                .is_some_and(|(number, bound)| number > bound),
            Operator::LessThan => number()
                .zip(bound())
                .is_some_and(|(number, bound)| number < bound),
        }
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            let key = &requirement.key;
            let mut values = requirement.values.clone();
            values.sort();
            match (requirement.operator, requirement.is_equality) {
                (Operator::In, true) => write!(f, "{key}={}", values.concat())?,
                (Operator::NotIn, true) => write!(f, "{key}!={}", values.concat())?,
                (Operator::In, false) => write!(f, "{key} in ({})", values.join(","))?,
                (Operator::NotIn, false) => write!(f, "{key} notin ({})", values.join(","))?,
                (Operator::Exists, _) => write!(f, "{key}")?,
                (Operator::DoesNotExist, _) => write!(f, "!{key}")?,
                (Operator::GreaterThan, _) => write!(f, "{key}>{}", values.concat())?,
                (Operator::LessThan, _) => write!(f, "{key}<{}", values.concat())?,
            }
        }
        Ok(())
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Not,
    Equals,
    DoubleEquals,
    NotEquals,
    Open,
    Close,
    Comma,
    Greater,
    Less,
    End,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Word(word) => word,
            Self::Not => "!",
            Self::Equals => "=",
            Self::DoubleEquals => "==",
            Self::NotEquals => "!=",
            Self::Open => "(",
            Self::Close => ")",
            Self::Comma => ",",
            Self::Greater => ">",
            Self::Less => "<",
            Self::End => "",
        })
    }
}

fn tokenize(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let token = match c {
            ' ' | '\t' | '\r' | '\n' => continue,
            '(' => Token::Open,
            ')' => Token::Close,
            ',' => Token::Comma,
            '>' => Token::Greater,
            '<' => Token::Less,
            '=' if chars.next_if_eq(&'=').is_some() => Token::DoubleEquals,
            '=' => Token::Equals,
            '!' if chars.next_if_eq(&'=').is_some() => Token::NotEquals,
            '!' => Token::Not,
            c => {
                let mut word = String::from(c);
                while let Some(c) = chars.next_if(|c| !" \t\r\n(),><=!".contains(*c)) {
                    word.push(c);
                }
                Token::Word(word)
            }
        };
        tokens.push(token);
    }
    Ok(tokens)
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> Token {
        self.tokens.get(self.at).cloned().unwrap_or(Token::End)
    }

    fn next(&mut self) -> Token {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let make = |key: String, operator: Operator, values: Vec<String>, is_equality: bool| {
            let requirement = Requirement {
                key,
                operator,
                values,
                is_equality,
            };
            requirement.check().map(|()| requirement)
        };
        let is_negated = self.peek() == Token::Not;
        if is_negated {
            self.next();
        }
        let key = match self.next() {
            Token::Word(word) => word,
            other => return Err(format!("found '{other}', expected: identifier")),
        };
        if is_negated {
            return make(key, Operator::DoesNotExist, Vec::new(), false);
        }
        if matches!(self.peek(), Token::End | Token::Comma) {
            return make(key, Operator::Exists, Vec::new(), false);
        }
        let (operator, is_equality) = match self.next() {
            Token::Equals | Token::DoubleEquals => (Operator::In, true),
            Token::NotEquals => (Operator::NotIn, true),
            Token::Greater => (Operator::GreaterThan, true),
            Token::Less => (Operator::LessThan, true),
            Token::Word(word) if word == "in" => (Operator::In, false),
            Token::Word(word) if word == "notin" => (Operator::NotIn, false),
            other => {
                return Err(format!(
                    "found '{other}', expected: in, notin, =, ==, !=, gt, lt"
                ));
            }
        };
        if is_equality {
            let value = match self.peek() {
                Token::End | Token::Comma => String::new(),
                Token::Word(word) => {
                    self.next();
                    word
                }
                other => return Err(format!("found '{other}', expected: identifier")),
            };
            return make(key, operator, vec![value], true);
        }
        match self.next() {
            Token::Open => {}
            other => return Err(format!("found '{other}' expected: '('")),
        }
        let mut values = Vec::new();
        let mut word_expected = true;
        loop {
            match self.next() {
                Token::Word(word) if word_expected => {
                    values.push(word);
                    word_expected = false;
                }
                Token::Comma => {
                    if word_expected {
                        values.push(String::new());
                    }
                    word_expected = true;
                }
                Token::Close => {
                    if word_expected {
                        values.push(String::new());
                    }
                    break;
                }
                other => return Err(format!("found '{other}', expected: ',', or ')'")),
            }
        }
        values.sort();
        values.dedup();
        make(key, operator, values, false)
    }
}

/// One condition on one field.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FieldRequirement {
    /// The field, such as `spec.nodeName`.
    pub field: String,
    /// It must be the value; otherwise it must not be.
    pub is_equal: bool,
    /// The value.
    pub value: String,
}

/// Conditions on fields; all of them must hold, and none holds for everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FieldSelector {
    requirements: Vec<FieldRequirement>,
}

impl FieldSelector {
    /// Matches every object.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Reads `a=b,c==d,e!=f`; `\`, `,` and `=` in a value are written with a `\` before them.
    ///
    /// # Errors
    /// When the text is no selector; the message is for the user.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut requirements = Vec::new();
        for term in split_terms(text) {
            if term.is_empty() {
                continue;
            }
            let no_term = || format!("invalid selector: '{text}'; can't understand '{term}'");
            let (field, operator, value) = split_term(term).ok_or_else(no_term)?;
            requirements.push(FieldRequirement {
                field: field.to_owned(),
                is_equal: operator != "!=",
                value: unescape(value)?,
            });
        }
        Ok(Self { requirements })
    }

    /// Whether it matches every object.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The conditions.
    pub fn requirements(&self) -> &[FieldRequirement] {
        &self.requirements
    }

    /// Whether the resource has all these fields.
    ///
    /// # Errors
    /// With the message for a `BadRequest` when it has not.
    pub fn check(&self, resource: &Resource) -> Result<(), String> {
        let known = resource.strategy.selectable_fields();
        for requirement in &self.requirements {
            let field = requirement.field.as_str();
            let is_known =
                field == "metadata.name" || field == "metadata.namespace" || known.contains(&field);
            if !is_known {
                return Err(if known.is_empty() {
                    format!(
                        "{} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
                        quote(field)
                    )
                } else {
                    format!("field label not supported: {field}")
                });
            }
        }
        Ok(())
    }

    /// The value a field must have, when one is asked for.
    pub fn required_value(&self, field: &str) -> Option<&str> {
        self.requirements
            .iter()
            .find(|requirement| requirement.is_equal && requirement.field == field)
            .map(|requirement| requirement.value.as_str())
    }

    /// Whether an object meets all conditions.
    pub fn matches(&self, resource: &Resource, object: &Value) -> bool {
        self.requirements.iter().all(|requirement| {
            let is_same = match requirement.field.as_str() {
                "metadata.name" => meta::name(object) == requirement.value,
                "metadata.namespace" => meta::namespace(object) == requirement.value,
                field => {
                    resource
                        .strategy
                        .selectable_field(object, field)
                        .unwrap_or_default()
                        == requirement.value
                }
            };
            is_same == requirement.is_equal
        })
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let operator = if requirement.is_equal { "=" } else { "!=" };
            let value = requirement
                .value
                .replace('\\', "\\\\")
                .replace(',', "\\,")
                .replace('=', "\\=");
            write!(f, "{comma}{}{operator}{value}", requirement.field)?;
        }
        Ok(())
    }
}

/// Splits at commas that have no `\` before them.
fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut is_escaped) = (0, false);
    for (i, byte) in text.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b',' => {
                terms.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

fn split_term(term: &str) -> Option<(&str, &str, &str)> {
    let at = term.find(['=', '!'])?;
    let rest = &term[at..];
    let operator = ["!=", "==", "="]
        .into_iter()
        .find(|operator| rest.starts_with(operator))?;
    Some((&term[..at], operator, &rest[operator.len()..]))
}

fn unescape(value: &str) -> Result<String, String> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                Some(c) => {
                    return Err(format!(
                        "invalid field selector: invalid escape sequence: \\{c}"
                    ));
                }
                None => {
                    return Err("invalid field selector: invalid escape sequence: \\".to_owned());
                }
            },
            ',' | '=' => {
                return Err(format!(
                    "invalid field selector: unescaped character in value: {c}"
                ));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn label_selectors_choose_as_kubectl_users_expect() {
        let labels = json!({"app": "web", "tier": "front", "n": "5"});
        let labels = labels.as_object();
        for (selector, is_match) in [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app = web , tier != back", true),
            ("app=db", false),
            ("app!=db", true),
            ("missing!=x", true),
            ("app in (web, db)", true),
            ("app in (db)", false),
            ("app notin (db,cache)", true),
            ("missing notin (x)", true),
            ("app", true),
            ("!app", false),
            ("!missing", true),
            ("app,tier,!x", true),
            ("n>4", true),
            ("n<5", false),
            ("app=", false),
            ("missing=", false),
            ("app in (web),tier=front,n", true),
        ] {
            let parsed = LabelSelector::parse(selector).expect(selector);
            assert_eq!(parsed.matches(labels), is_match, "{selector}");
            let again =
                LabelSelector::parse(&parsed.to_string()).expect("what is printed is read again");
            assert_eq!(again.matches(labels), is_match, "{selector} → {parsed}");
        }
    }

    #[test]
    fn label_selectors_that_make_no_sense_are_refused() {
        for (selector, text) in [
            ("a=b,", "found '', expected: identifier after ','"),
            (
                "=b",
                "unable to parse requirement: found '=', expected: identifier",
            ),
            (
                "a in b",
                "unable to parse requirement: found 'b' expected: '('",
            ),
            (
                "a in (b",
                "unable to parse requirement: found '', expected: ',', or ')'",
            ),
            (
                "a b",
                "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
            ),
            ("a=b c", "found 'c', expected: ',' or 'end of string'"),
        ] {
            assert_eq!(LabelSelector::parse(selector).expect_err(selector), text);
        }
        let error = LabelSelector::parse("a=b@").expect_err("@ may not be in a label");
        assert!(error.starts_with(
            "unable to parse requirement: values[0][a]: Invalid value: \"b@\": a valid label must be an empty string"
        ));
    }

    #[test]
    fn a_selector_object_is_read_like_its_text() {
        let selector = LabelSelector::from_value(&json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["back"]}],
        }))
        .expect("selector");
        assert_eq!(selector.to_string(), "app=web,tier notin (back)");
        assert!(selector.matches(json!({"app": "web"}).as_object()));
        assert!(
            !LabelSelector::from_value(&Value::Null)
                .expect("null")
                .matches(None)
        );
        assert!(
            LabelSelector::from_value(&json!({}))
                .expect("empty")
                .matches(None)
        );
        assert!(
            LabelSelector::from_value(
                &json!({"matchExpressions": [{"key": "a", "operator": "In"}]})
            )
            .is_err()
        );
        assert_eq!(
            LabelSelector::from_value(
                &json!({"matchExpressions": [{"key": "a", "operator": "Is"}]})
            ),
            Err("\"Is\" is not a valid label selector operator".to_owned())
        );
    }

    #[test]
    fn field_selectors_are_read_with_escapes() {
        let selector = FieldSelector::parse("a=b,c==d,e!=f,g=h\\,i\\=").expect("selector");
        assert_eq!(selector.to_string(), "a=b,c=d,e!=f,g=h\\,i\\=");
        assert_eq!(selector.required_value("g"), Some("h,i="));
        assert_eq!(selector.required_value("e"), None);
        assert_eq!(
            FieldSelector::parse("x").expect_err("no operator"),
            "invalid selector: 'x'; can't understand 'x'"
        );
        assert!(FieldSelector::parse("").expect("empty").is_everything());
    }

    #[test]
    fn field_selectors_look_at_the_fields_of_the_resource() {
        let pods = crate::find("", "v1", "pods").expect("pods");
        let pod = json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"nodeName": "x"}, "status": {}});
        for (selector, is_match) in [
            ("metadata.name=a", true),
            ("metadata.name!=a", false),
            ("metadata.namespace=n,spec.nodeName=x", true),
            ("spec.nodeName=", false),
            ("status.phase!=Running", true),
        ] {
            let selector = FieldSelector::parse(selector).expect(selector);
            selector.check(pods).expect("fields of pods");
            assert_eq!(selector.matches(pods, &pod), is_match, "{selector}");
        }
        let check = |plural, selector| {
            FieldSelector::parse(selector)
                .expect("selector")
                .check(crate::find("", "v1", plural).expect("resource"))
        };
        assert_eq!(
            check("pods", "spec.foo=a"),
            Err("field label not supported: spec.foo".to_owned())
        );
        assert_eq!(
            check("configmaps", "data=a"),
            Err("\"data\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"".to_owned())
        );
    }
}
