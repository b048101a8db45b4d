//! Objects chosen by their labels.

use std::{collections::BTreeMap, fmt};

use serde_json::{Map, Value};

use crate::{
    FieldError,
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
