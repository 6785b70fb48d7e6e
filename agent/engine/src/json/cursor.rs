//! JSON read from front to back, without a tree and without a second pass over what is large.
//!
//! Objects and lists are walked by closures that read each value as what it is to become: numbers by [`super::number`]
//! straight into typed lists, small things by serde. A value that is passed over is checked as strictly as any other.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::IgnoredAny;

/// Reads one text of JSON.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    json: &'a [u8],
    at: usize,
}

/// JSON that can't be read: why, and after how many bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why} at byte {at}")]
pub struct CursorError {
    why: String,
    at: usize,
}

/// What kind of value comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// `{`
    Object,
    /// `[`
    List,
    /// `"`
    Text,
    /// `-` or a digit
    Number,
    /// `null`, `true`, `false`, or what is no JSON
    Word,
}

impl<'a> Cursor<'a> {
    /// At the beginning of `json`.
    pub fn new(json: &'a [u8]) -> Self {
        Self { json, at: 0 }
    }

    /// What comes next.
    ///
    /// # Errors
    /// Nothing does.
    pub fn ahead(&mut self) -> Result<Next, CursorError> {
        Ok(match self.peek()? {
            b'{' => Next::Object,
            b'[' => Next::List,
            b'"' => Next::Text,
            b'-' | b'0'..=b'9' => Next::Number,
            _ => Next::Word,
        })
    }

    /// Whether a list of objects comes next.
    pub fn opens_rows(&self) -> bool {
        let mut copy = self.clone();
        copy.take(b'[') == Ok(true) && copy.ahead() == Ok(Next::Object)
    }

    /// Reads an object: `field` is called with each name, and reads its value.
    ///
    /// # Errors
    /// It is none, or `field` says so.
    pub fn object<E: From<CursorError>>(
        &mut self,
        mut field: impl FnMut(&str, &mut Self) -> Result<(), E>,
    ) -> Result<(), E> {
        self.expect(b'{', "an object")?;
        if self.take(b'}')? {
            return Ok(());
        }
        loop {
            let name = self.text()?;
            self.expect(b':', "`:`")?;
            field(&name, self)?;
            if self.take(b'}')? {
                return Ok(());
            }
            self.expect(b',', "`,` or `}`")?;
        }
    }

    /// Reads a list: `item` is called for each item, and reads it.
    ///
    /// # Errors
    /// It is none, or `item` says so.
    pub fn list<E: From<CursorError>>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<(), E>,
    ) -> Result<(), E> {
        self.expect(b'[', "a list")?;
        if self.take(b']')? {
            return Ok(());
        }
        loop {
            item(self)?;
            if self.take(b']')? {
                return Ok(());
            }
            self.expect(b',', "`,` or `]`")?;
        }
    }

    /// Reads a text.
    ///
    /// # Errors
    /// It is none.
    pub fn text(&mut self) -> Result<Cow<'a, str>, CursorError> {
        if self.peek()? != b'"' {
            return Err(self.wrong("expected a text in quotes"));
        }
        let rest = self.rest().get(1..).unwrap_or_default();
        let end = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20));
        if let Some((text, [b'"', ..])) = end.and_then(|end| rest.split_at_checked(end)) {
            let read = std::str::from_utf8(text).map_err(|_| self.wrong("a text is not UTF-8"))?;
            self.at += text.len() + 2;
            return Ok(Cow::Borrowed(read));
        }
        self.value().map(Cow::Owned)
    }

    /// Whether `null` comes next; it is passed over if so.
    ///
    /// # Errors
    /// Nothing comes next.
    pub fn null(&mut self) -> Result<bool, CursorError> {
        self.peek()?;
        let is = self.rest().starts_with(b"null");
        self.at += if is { b"null".len() } else { 0 };
        Ok(is)
    }

    /// Reads any value by serde.
    ///
    /// # Errors
    /// It is no JSON, or none of a `T`.
    pub fn value<T: Deserialize<'a>>(&mut self) -> Result<T, CursorError> {
        self.peek()?;
        let mut values = serde_json::Deserializer::from_slice(self.rest()).into_iter();
        let value = values.next();
        let read = values.byte_offset();
        match value {
            Some(Ok(value)) => {
                self.at += read;
                Ok(value)
            }
            Some(Err(error)) => Err(self.wrong(&without_place(&error))),
            None => Err(self.wrong("EOF: a value is missing")),
        }
    }

    /// Passes over any value.
    ///
    /// # Errors
    /// It is no JSON.
    pub fn skip(&mut self) -> Result<(), CursorError> {
        self.value::<IgnoredAny>().map(drop)
    }

    /// Passes over any value for now; gives a cursor for it. Of a list or object only the brackets are looked at until then.
    ///
    /// # Errors
    /// Its end is missing.
    pub fn defer(&mut self) -> Result<Self, CursorError> {
        if !matches!(self.ahead()?, Next::Object | Next::List) {
            let begin = self.at;
            self.skip()?;
            return Ok(Self { json: self.json.get(..self.at).unwrap_or_default(), at: begin });
        }
        let (mut depth, mut in_text, mut escaped) = (0usize, false, false);
        for (offset, byte) in self.rest().iter().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_text => escaped = true,
                b'"' => in_text = !in_text,
                b'[' | b'{' if !in_text => depth += 1,
                b']' | b'}' if !in_text => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                let end = self.at + offset + 1;
                let value = Self { json: self.json.get(..end).unwrap_or_default(), at: self.at };
                self.at = end;
                return Ok(value);
            }
        }
        Err(self.wrong("EOF: a list or object does not end"))
    }

    /// Makes sure that nothing follows.
    ///
    /// # Errors
    /// Something does.
    pub fn end(&mut self) -> Result<(), CursorError> {
        match self.peek() {
            Err(_) => Ok(()),
            Ok(_) => Err(self.wrong("trailing characters")),
        }
    }

    /// The bytes that are not read yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.json.get(self.at..).unwrap_or_default()
    }

    /// Passes over bytes that were read through [`Cursor::rest`].
    pub(super) fn advance(&mut self, bytes: usize) {
        self.at += bytes;
    }

    /// An error at this place.
    pub fn wrong(&self, why: &str) -> CursorError {
        CursorError { why: why.to_owned(), at: self.at }
    }

    /// Whether `byte` comes next; it is passed over if so.
    #[inline]
    pub(super) fn take(&mut self, byte: u8) -> Result<bool, CursorError> {
        let is = self.peek()? == byte;
        self.at += usize::from(is);
        Ok(is)
    }

    #[inline]
    fn expect(&mut self, byte: u8, what: &str) -> Result<(), CursorError> {
        if self.take(byte)? { Ok(()) } else { Err(self.wrong(&format!("expected {what}"))) }
    }

    /// The next byte that is no white space.
    fn peek(&mut self) -> Result<u8, CursorError> {
        loop {
            match self.json.get(self.at) {
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.at += 1,
                Some(byte) => return Ok(*byte),
                None => return Err(self.wrong("EOF: a value is missing")),
            }
        }
    }
}

/// serde's words without its line and column, which count from where it began.
fn without_place(error: &impl fmt::Display) -> String {
    let words = error.to_string();
    words.rsplit_once(" at line ").map_or(words.as_str(), |(words, _)| words).to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn objects_and_lists_are_walked() {
        let json = br#" { "a" : [ 1 , "x\u00e9" ] , "b":{"c":[[],{}]} ,"d" : null } "#;
        let mut cursor = Cursor::new(json);
        let mut seen = Vec::new();
        cursor
            .object(|name, cursor| {
                seen.push((name.to_owned(), cursor.value::<Value>()?.to_string()));
                Ok::<_, CursorError>(())
            })
            .unwrap();
        cursor.end().unwrap();
        let expected = [("a", r#"[1,"xé"]"#), ("b", r#"{"c":[[],{}]}"#), ("d", "null")];
        assert_eq!(seen, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn what_is_deferred_is_read_later() {
        let mut cursor = Cursor::new(br#"[{"a":"]}\""}, 7, "[", [true]]"#);
        let mut later = Vec::new();
        cursor.list(|cursor| cursor.defer().map(|value| later.push(value))).unwrap();
        let read: Vec<Value> = later.iter_mut().map(|value| value.value().unwrap()).collect();
        assert_eq!(Value::from(read), serde_json::json!([{"a": "]}\""}, 7, "[", [true]]));
        assert!(later.iter_mut().all(|value| value.end().is_ok()));
    }

    #[test]
    fn what_is_no_json_is_refused() {
        let says = |json: &str| {
            let mut cursor = Cursor::new(json.as_bytes());
            let read = cursor.object(|_, cursor| cursor.skip());
            read.and_then(|()| cursor.end()).unwrap_err().to_string()
        };
        assert_eq!(says("[1]"), "expected an object at byte 0");
        assert_eq!(says(r#"{"a" 1}"#), "expected `:` at byte 5");
        assert_eq!(says(r#"{"a":1 "b":2}"#), "expected `,` or `}` at byte 7");
        assert_eq!(says(r#"{"a":1} 2"#), "trailing characters at byte 8");
        assert_eq!(says("{a:1}"), "expected a text in quotes at byte 1");
        assert!(says(r#"{"a":"#).starts_with("EOF"));
        assert!(says(r#"{"a":1,}"#).starts_with("expected a text"));
        assert!(says(r#"{"a":01}"#).starts_with("invalid number"));
        assert!(says("{\"a\u{1}\":1}").starts_with("control character"));
        assert!(Cursor::new(b"[[1]").defer().is_err());
        assert!(Cursor::new(b"]").defer().is_err());
    }
}
