//! Words to text.

use crate::{
    parse::{Part, Word},
    run::{Flow, Shell},
};

impl Shell {
    /// A word as one text, unsplit.
    pub(crate) fn text(&mut self, word: &Word) -> Result<String, Flow> {
        let mut text = String::new();
        for part in word {
            text += &self.part(part)?;
        }
        Ok(text)
    }

    /// Words with unquoted expansions split at blanks.
    pub(crate) fn words(&mut self, words: &[Word]) -> Result<Vec<String>, Flow> {
        let mut result = Vec::new();
        for word in words {
            let mut current: Option<String> = None;
            for part in word {
                if matches!(part, Part::Variable(name, true) if name == "@") {
                    let mut arguments = self.arguments.iter().skip(1).cloned();
                    if let Some(first) = arguments.next() {
                        *current.get_or_insert_default() += &first;
                        result.extend(
                            arguments.map(|next| current.replace(next).unwrap_or_default()),
                        );
                    }
                    continue;
                }
                let text = self.part(part)?;
                let is_split = matches!(
                    part,
                    Part::Variable(_, false) | Part::Command(_, false) | Part::Arithmetic(_, false)
                );
                if !is_split {
                    *current.get_or_insert_default() += &text;
                    continue;
                }
                if text.starts_with(char::is_whitespace) {
                    result.extend(current.take());
                }
                let mut pieces = text.split_whitespace().peekable();
                while let Some(piece) = pieces.next() {
                    *current.get_or_insert_default() += piece;
                    if pieces.peek().is_some() || text.ends_with(char::is_whitespace) {
                        result.extend(current.take());
                    }
                }
            }
            result.extend(current);
        }
        Ok(result)
    }

    fn part(&mut self, part: &Part) -> Result<String, Flow> {
        match part {
            Part::Text(text) | Part::Quoted(text) => Ok(text.clone()),
            Part::Variable(name, _) => Ok(self.variable(name)),
            Part::Command(script, _) => {
                let output = self.capture(script)?;
                let text = String::from_utf8_lossy(&output);
                Ok(text.trim_end_matches('\n').to_owned())
            }
            Part::Arithmetic(text, _) => self
                .arithmetic(text)
                .map(|value| value.to_string())
                .map_err(Flow::error),
        }
    }

    fn variable(&self, name: &str) -> String {
        if let Some((name, otherwise)) = name.split_once(":-") {
            let value = self.variable(name);
            return if value.is_empty() {
                otherwise.to_owned()
            } else {
                value
            };
        }
        match name {
            "?" => self.code.to_string(),
            "#" => self.arguments.len().saturating_sub(1).to_string(),
            "$" => "1".to_owned(),
            "@" | "*" => self.arguments.get(1..).unwrap_or_default().join(" "),
            _ => match name.parse::<usize>() {
                Ok(n) => self.arguments.get(n).cloned().unwrap_or_default(),
                Err(_) => self.get(name).unwrap_or_default(),
            },
        }
    }

    /// Whole numbers, variables, `+ - * / %`, from left to right, `*` before `+`.
    fn arithmetic(&self, text: &str) -> Result<i64, String> {
        let mut tokens: Vec<String> = Vec::new();
        for c in text.chars().filter(|c| !c.is_whitespace() && *c != '$') {
            let joins = c.is_alphanumeric() || c == '_';
            match tokens.last_mut() {
                Some(last)
                    if joins && last.ends_with(|c: char| c.is_alphanumeric() || c == '_') =>
                {
                    last.push(c)
                }
                _ => tokens.push(c.to_string()),
            }
        }
        let wrong = || format!("arithmetic: {text}");
        let value = |token: Option<&String>| -> Result<i64, String> {
            let token = token.ok_or_else(wrong)?;
            match token.parse() {
                Ok(value) => Ok(value),
                Err(_) => Ok(self
                    .get(token)
                    .and_then(|value| value.parse().ok())
                    .unwrap_or(0)),
            }
        };
        let (mut sum, mut sign, mut at) = (0i64, 1i64, 0);
        loop {
            let mut product = value(tokens.get(at))?;
            at += 1;
            while let Some(operator @ ("*" | "/" | "%")) = tokens.get(at).map(String::as_str) {
                let right = value(tokens.get(at + 1))?;
                let result = match operator {
                    "*" => product.checked_mul(right),
                    "/" => product.checked_div(right),
                    _ => product.checked_rem(right),
                };
                product = result.ok_or_else(wrong)?;
                at += 2;
            }
            sum += sign * product;
            sign = match tokens.get(at).map(String::as_str) {
                None => return Ok(sum),
                Some("+") => 1,
                Some("-") => -1,
                Some(_) => return Err(wrong()),
            };
            at += 1;
        }
    }
}
