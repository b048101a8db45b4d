//! Text to commands.

/// A command with what it is joined to.
#[derive(Clone, Debug)]
pub(crate) enum Command {
    Simple {
        assignments: Vec<(String, Word)>,
        words: Vec<Word>,
        redirects: Vec<Redirect>,
    },
    Group(Vec<Command>, Vec<Redirect>),
    Pipe(Vec<Command>),
    And(Box<Command>, Box<Command>),
    Or(Box<Command>, Box<Command>),
    Not(Box<Command>),
    If {
        arms: Vec<(Vec<Command>, Vec<Command>)>,
        otherwise: Vec<Command>,
    },
    While {
        until: bool,
        condition: Vec<Command>,
        body: Vec<Command>,
    },
    For {
        name: String,
        words: Vec<Word>,
        body: Vec<Command>,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct Redirect {
    pub(crate) fd: u8,
    pub(crate) kind: RedirectKind,
    pub(crate) target: Word,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RedirectKind {
    Read,
    Write,
    Append,
    Copy,
}

pub(crate) type Word = Vec<Part>;

#[derive(Clone, Debug)]
pub(crate) enum Part {
    Text(String),
    /// Text in quotes: never split.
    Quoted(String),
    /// What is between `$` and its end, and whether it stands in double quotes.
    Variable(String, bool),
    Command(String, bool),
    Arithmetic(String, bool),
}

#[derive(Clone, Debug)]
enum Token {
    Word(Word),
    Operator(&'static str),
    Redirect(u8, RedirectKind),
}

const OPERATORS: [&str; 7] = ["&&", "||", ";", "\n", "|", "(", ")"];
const CLOSERS: [&str; 8] = ["then", "elif", "else", "fi", "do", "done", "}", ")"];

/// Parses a script.
pub(crate) fn parse(text: &str) -> Result<Vec<Command>, String> {
    let tokens = tokenize(text)?;
    let mut parser = Parser { tokens, at: 0 };
    let commands = parser.list()?;
    match parser.peek() {
        None => Ok(commands),
        Some(token) => Err(format!("syntax error: unexpected {token:?}")),
    }
}

fn tokenize(text: &str) -> Result<Vec<Token>, String> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let rest = &chars[at..];
        let starts =
            |text: &str| rest.len() >= text.len() && text.chars().zip(rest).all(|(a, b)| a == *b);
        let fd = rest[0]
            .to_digit(10)
            .filter(|_| rest.get(1).is_some_and(|next| matches!(next, '>' | '<')));
        if rest[0] == ' ' || rest[0] == '\t' {
            at += 1;
        } else if rest[0] == '#' {
            at += rest.iter().position(|c| *c == '\n').unwrap_or(rest.len());
        } else if let Some(operator) = OPERATORS.into_iter().find(|operator| starts(operator)) {
            tokens.push(Token::Operator(operator));
            at += operator.len();
        } else if rest[0] == '&' {
            return Err("&: WASI has no processes".into());
        } else if fd.is_some() || rest[0] == '>' || rest[0] == '<' {
            at += usize::from(fd.is_some());
            let is_input = chars[at] == '<';
            let (kind, length) = match (is_input, chars.get(at + 1)) {
                (true, _) => (RedirectKind::Read, 1),
                (false, Some('>')) => (RedirectKind::Append, 2),
                (false, Some('&')) => (RedirectKind::Copy, 2),
                (false, _) => (RedirectKind::Write, 1),
            };
            at += length;
            tokens.push(Token::Redirect(
                fd.map_or(u8::from(!is_input), |fd| fd as u8),
                kind,
            ));
        } else {
            let (word, length) = word(rest)?;
            tokens.push(Token::Word(word));
            at += length;
        }
    }
    Ok(tokens)
}

/// One word from its beginning, and how long it is.
fn word(chars: &[char]) -> Result<(Word, usize), String> {
    let mut parts: Word = Vec::new();
    let mut text = String::new();
    let mut at = 0;
    let flush = |parts: &mut Word, text: &mut String| {
        if !text.is_empty() {
            parts.push(Part::Text(std::mem::take(text)));
        }
    };
    while at < chars.len() {
        match chars[at] {
            ' ' | '\t' | '\n' | ';' | '|' | '<' | '>' | '(' | ')' | '&' => break,
            '\'' => {
                flush(&mut parts, &mut text);
                let end = chars[at + 1..]
                    .iter()
                    .position(|c| *c == '\'')
                    .ok_or("unterminated quoted string")?;
                parts.push(Part::Quoted(chars[at + 1..at + 1 + end].iter().collect()));
                at += end + 2;
            }
            '"' => {
                flush(&mut parts, &mut text);
                at += 1 + double_quoted(&chars[at + 1..], &mut parts)?;
            }
            '\\' => {
                flush(&mut parts, &mut text);
                match chars.get(at + 1) {
                    Some('\n') | None => {}
                    Some(c) => parts.push(Part::Quoted(c.to_string())),
                }
                at += 2;
            }
            '$' => {
                flush(&mut parts, &mut text);
                at += dollar(&chars[at..], false, &mut parts)?;
            }
            c => {
                text.push(c);
                at += 1;
            }
        }
    }
    flush(&mut parts, &mut text);
    Ok((parts, at))
}

/// What follows an opening quote; answers its length with the closing one.
fn double_quoted(chars: &[char], parts: &mut Word) -> Result<usize, String> {
    let mut text = String::new();
    let mut at = 0;
    loop {
        match chars.get(at) {
            None => return Err("unterminated quoted string".into()),
            Some('"') => {
                parts.push(Part::Quoted(text));
                return Ok(at + 1);
            }
            Some('\\') if matches!(chars.get(at + 1), Some('"' | '\\' | '$' | '`')) => {
                text.push(chars[at + 1]);
                at += 2;
            }
            Some('$') => {
                parts.push(Part::Quoted(std::mem::take(&mut text)));
                at += dollar(&chars[at..], true, parts)?;
            }
            Some(c) => {
                text.push(*c);
                at += 1;
            }
        }
    }
}

fn closing(chars: &[char], open: char, close: char) -> Result<usize, String> {
    let mut depth = 0;
    for (at, c) in chars.iter().enumerate() {
        if *c == open {
            depth += 1;
        } else if *c == close {
            depth -= 1;
            if depth == 0 {
                return Ok(at);
            }
        }
    }
    Err(format!("missing {close}"))
}

/// What begins with `$`; answers its length.
fn dollar(chars: &[char], is_quoted: bool, parts: &mut Word) -> Result<usize, String> {
    let text = |from: usize, to: usize| chars[from..to].iter().collect::<String>();
    match chars.get(1) {
        Some('(') if chars.get(2) == Some(&'(') => {
            let end = closing(&chars[1..], '(', ')')?;
            parts.push(Part::Arithmetic(text(3, end), is_quoted));
            Ok(end + 2)
        }
        Some('(') => {
            let end = closing(&chars[1..], '(', ')')?;
            parts.push(Part::Command(text(2, end + 1), is_quoted));
            Ok(end + 2)
        }
        Some('{') => {
            let end = closing(&chars[1..], '{', '}')?;
            parts.push(Part::Variable(text(2, end + 1), is_quoted));
            Ok(end + 2)
        }
        Some(c) if c.is_ascii_alphabetic() || *c == '_' => {
            let end = chars[1..]
                .iter()
                .position(|c| !c.is_ascii_alphanumeric() && *c != '_');
            let end = end.map_or(chars.len(), |end| end + 1);
            parts.push(Part::Variable(text(1, end), is_quoted));
            Ok(end)
        }
        Some(c) if c.is_ascii_digit() || matches!(c, '?' | '#' | '$' | '@' | '*') => {
            parts.push(Part::Variable(c.to_string(), is_quoted));
            Ok(2)
        }
        _ => {
            parts.push(Part::Quoted("$".into()));
            Ok(1)
        }
    }
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

/// A word that is a plain text, such as a keyword.
fn plain(token: Option<&Token>) -> Option<&str> {
    match token {
        Some(Token::Word(parts)) => match &parts[..] {
            [Part::Text(text)] => Some(text),
            _ => None,
        },
        _ => None,
    }
}

fn assignment(word: &Word) -> Option<(String, Word)> {
    let Some(Part::Text(text)) = word.first() else {
        return None;
    };
    let (name, value) = text.split_once('=')?;
    let is_name = !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let mut parts = vec![Part::Text(value.to_owned())];
    parts.extend(word[1..].iter().cloned());
    is_name.then(|| (name.to_owned(), parts))
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn operator(&self) -> Option<&'static str> {
        match self.peek() {
            Some(Token::Operator(operator)) => Some(operator),
            _ => None,
        }
    }

    fn keyword(&self) -> Option<&str> {
        plain(self.peek())
    }

    fn skip_newlines(&mut self) {
        while self.operator() == Some("\n") {
            self.at += 1;
        }
    }

    fn expect(&mut self, keyword: &str) -> Result<(), String> {
        if self.keyword() == Some(keyword) {
            self.at += 1;
            Ok(())
        } else {
            Err(format!("syntax error: {keyword} expected"))
        }
    }

    fn list(&mut self) -> Result<Vec<Command>, String> {
        let mut commands = Vec::new();
        loop {
            while matches!(self.operator(), Some(";" | "\n")) {
                self.at += 1;
            }
            let is_closed = self.keyword().is_some_and(|word| CLOSERS.contains(&word));
            if self.peek().is_none() || is_closed || self.operator() == Some(")") {
                return Ok(commands);
            }
            commands.push(self.and_or()?);
            if !matches!(self.operator(), Some(";" | "\n")) {
                return Ok(commands);
            }
        }
    }

    fn and_or(&mut self) -> Result<Command, String> {
        let mut left = self.pipeline()?;
        loop {
            let join = match self.operator() {
                Some("&&") => Command::And,
                Some("||") => Command::Or,
                _ => return Ok(left),
            };
            self.at += 1;
            self.skip_newlines();
            left = join(Box::new(left), Box::new(self.pipeline()?));
        }
    }

    fn pipeline(&mut self) -> Result<Command, String> {
        if self.keyword() == Some("!") {
            self.at += 1;
            return Ok(Command::Not(Box::new(self.pipeline()?)));
        }
        let mut stages = vec![self.command()?];
        while self.operator() == Some("|") {
            self.at += 1;
            self.skip_newlines();
            stages.push(self.command()?);
        }
        Ok(if stages.len() == 1 {
            stages.remove(0)
        } else {
            Command::Pipe(stages)
        })
    }

    fn command(&mut self) -> Result<Command, String> {
        let keyword = self.keyword().map(str::to_owned);
        match keyword.as_deref() {
            Some("if") => {
                self.at += 1;
                let (mut arms, mut otherwise) = (Vec::new(), Vec::new());
                loop {
                    let condition = self.list()?;
                    self.expect("then")?;
                    arms.push((condition, self.list()?));
                    if self.keyword() == Some("elif") {
                        self.at += 1;
                        continue;
                    }
                    if self.keyword() == Some("else") {
                        self.at += 1;
                        otherwise = self.list()?;
                    }
                    self.expect("fi")?;
                    return Ok(Command::If { arms, otherwise });
                }
            }
            Some(word @ ("while" | "until")) => {
                let until = word == "until";
                self.at += 1;
                let condition = self.list()?;
                self.expect("do")?;
                let body = self.list()?;
                self.expect("done")?;
                Ok(Command::While {
                    until,
                    condition,
                    body,
                })
            }
            Some("for") => {
                self.at += 1;
                let name = self.keyword().ok_or("for: a name expected")?.to_owned();
                self.at += 1;
                self.expect("in")?;
                let mut words = Vec::new();
                while let Some(Token::Word(word)) = self.peek() {
                    words.push(word.clone());
                    self.at += 1;
                }
                while matches!(self.operator(), Some(";" | "\n")) {
                    self.at += 1;
                }
                self.expect("do")?;
                let body = self.list()?;
                self.expect("done")?;
                Ok(Command::For { name, words, body })
            }
            Some("{") => {
                self.at += 1;
                let body = self.list()?;
                self.expect("}")?;
                Ok(Command::Group(body, self.redirects()?))
            }
            _ if self.operator() == Some("(") => {
                self.at += 1;
                let body = self.list()?;
                if self.operator() != Some(")") {
                    return Err("syntax error: ) expected".into());
                }
                self.at += 1;
                Ok(Command::Group(body, self.redirects()?))
            }
            _ => self.simple(),
        }
    }

    fn redirects(&mut self) -> Result<Vec<Redirect>, String> {
        let mut redirects = Vec::new();
        while let Some(redirect) = self.redirect()? {
            redirects.push(redirect);
        }
        Ok(redirects)
    }

    fn redirect(&mut self) -> Result<Option<Redirect>, String> {
        let Some(Token::Redirect(fd, kind)) = self.peek() else {
            return Ok(None);
        };
        let (fd, kind) = (*fd, *kind);
        self.at += 1;
        let Some(Token::Word(target)) = self.peek() else {
            return Err("syntax error: a file expected".into());
        };
        let target = target.clone();
        self.at += 1;
        Ok(Some(Redirect { fd, kind, target }))
    }

    fn simple(&mut self) -> Result<Command, String> {
        let (mut assignments, mut words, mut redirects) =
            (Vec::new(), Vec::<Word>::new(), Vec::new());
        loop {
            if let Some(redirect) = self.redirect()? {
                redirects.push(redirect);
                continue;
            }
            let Some(Token::Word(word)) = self.peek() else {
                break;
            };
            match assignment(word) {
                Some(assigned) if words.is_empty() => assignments.push(assigned),
                _ => words.push(word.clone()),
            }
            self.at += 1;
        }
        if assignments.is_empty() && words.is_empty() && redirects.is_empty() {
            return Err("syntax error: a command expected".into());
        }
        Ok(Command::Simple {
            assignments,
            words,
            redirects,
        })
    }
}
