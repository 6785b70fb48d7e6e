//! The elements of one tensor while they are read: of one type, in order, with the shape that their nesting shows.
//!
//! Invariant: there are at most [`MAX_ELEMENTS`] of them, and lists of one depth have one length.

use std::borrow::Cow;

use half::f16;
use serde_json::value::RawValue;

use super::cursor::{Cursor, CursorError, Next};
use super::number::{FromNumber, Number};
use super::{JsonError, MAX_ELEMENTS};
use crate::tensor::{self, Data, DataType, Element, MAX_RANK, Tensor};

/// Elements of one type, read from lists of any nesting.
#[derive(Clone, Debug)]
pub struct Elements {
    data: Data,
    /// The length of the lists at each depth, once the first list of that depth has ended.
    nesting: Vec<Option<usize>>,
}

impl Elements {
    /// None yet.
    pub fn new(data_type: DataType) -> Self {
        Self { data: Data::zeros(data_type, 0), nesting: Vec::new() }
    }

    /// Reads a value: an element, or lists of them.
    ///
    /// # Errors
    /// It is none of the type, too many, nested too deep, or of lists that differ in length.
    pub fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), CursorError> {
        self.level(cursor, 0)
    }

    /// Reads one more value as the next row: an item of the outermost list.
    ///
    /// # Errors
    /// As [`Elements::read`].
    pub fn read_row(&mut self, cursor: &mut Cursor<'_>) -> Result<(), CursorError> {
        match self.nesting.first_mut() {
            Some(rows) => *rows = rows.map(|rows| rows + 1),
            None => self.nesting.push(Some(1)),
        }
        self.level(cursor, 1)
    }

    /// The length of the lists at each depth, outermost first; none for a lone element.
    pub fn nesting(&self) -> Vec<usize> {
        self.nesting.iter().copied().flatten().collect()
    }

    /// The tensor `name` of these elements, whatever their nesting.
    ///
    /// # Errors
    /// Another number of elements than `shape` holds.
    pub fn into_tensor(self, name: &str, shape: Vec<usize>) -> Result<Tensor, JsonError> {
        let why = match (tensor::elements(&shape), self.data.len()) {
            (Ok(expected), given) if expected != given => {
                format!("shape {shape:?} holds {expected} elements, data has {given}")
            }
            (Ok(_), _) => match Tensor::new(shape, self.data) {
                Ok(tensor) => return Ok(tensor),
                Err(error) => error.to_string(),
            },
            (Err(error), _) => error.to_string(),
        };
        Err(JsonError { tensor: name.to_owned(), why })
    }

    fn level(&mut self, cursor: &mut Cursor<'_>, depth: usize) -> Result<(), CursorError> {
        let Self { data, nesting } = self;
        match data {
            Data::F32(elements) => floats(elements, f32::NAN).level(cursor, nesting, depth),
            Data::F64(elements) => floats(elements, f64::NAN).level(cursor, nesting, depth),
            Data::F16(elements) => floats(elements, f16::NAN).level(cursor, nesting, depth),
            Data::I8(elements) => integers(elements).level(cursor, nesting, depth),
            Data::I16(elements) => integers(elements).level(cursor, nesting, depth),
            Data::I32(elements) => integers(elements).level(cursor, nesting, depth),
            Data::I64(elements) => integers(elements).level(cursor, nesting, depth),
            Data::U8(elements) => integers(elements).level(cursor, nesting, depth),
            Data::U16(elements) => integers(elements).level(cursor, nesting, depth),
            Data::U32(elements) => integers(elements).level(cursor, nesting, depth),
            Data::U64(elements) => integers(elements).level(cursor, nesting, depth),
            Data::Bool(elements) => List { elements, read: boolean, run: none }.level(cursor, nesting, depth),
            Data::String(elements) => List { elements, read: text, run: none }.level(cursor, nesting, depth),
        }
    }
}

/// The elements of one type, how one of them is read at a given position, and many where they are plain.
struct List<'a, T, R> {
    elements: &'a mut Vec<T>,
    read: R,
    run: fn(&mut Cursor<'_>, &mut Vec<T>) -> usize,
}

impl<T, R: Fn(&mut Cursor<'_>, usize) -> Result<T, CursorError>> List<'_, T, R> {
    fn level(
        &mut self,
        cursor: &mut Cursor<'_>,
        nesting: &mut Vec<Option<usize>>,
        depth: usize,
    ) -> Result<(), CursorError> {
        if cursor.ahead()? != Next::List {
            if self.elements.len() >= MAX_ELEMENTS {
                return Err(cursor.wrong(&format!("more than {MAX_ELEMENTS} elements")));
            }
            let element = (self.read)(cursor, self.elements.len())?;
            self.elements.push(element);
            return Ok(());
        }
        if depth >= MAX_RANK {
            return Err(cursor.wrong(&format!("data is nested deeper than {MAX_RANK}")));
        }
        if nesting.len() <= depth {
            nesting.push(None);
        }
        let mut length = 0usize;
        cursor.list(|cursor| {
            length += 1 + (self.run)(cursor, self.elements);
            self.level(cursor, nesting, depth + 1)
        })?;
        match nesting.get_mut(depth) {
            Some(Some(known)) if *known != length => Err(cursor.wrong("lists at one depth differ in length")),
            Some(known) => {
                *known = Some(length);
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// Numbers, and null for what is none.
fn floats<T: FromNumber + Element + Copy>(
    elements: &mut Vec<T>,
    not_a_number: T,
) -> List<'_, T, impl Fn(&mut Cursor<'_>, usize) -> Result<T, CursorError>> {
    let read = move |cursor: &mut Cursor<'_>, position: usize| match number(cursor) {
        Some(element) => Ok(element),
        None if cursor.null()? => Ok(not_a_number),
        None => Err(other(cursor, position, T::DATA_TYPE)),
    };
    List { elements, read, run }
}

fn integers<T: FromNumber + Element>(
    elements: &mut Vec<T>,
) -> List<'_, T, impl Fn(&mut Cursor<'_>, usize) -> Result<T, CursorError>> {
    let read = |cursor: &mut Cursor<'_>, position: usize| {
        number(cursor).ok_or_else(|| other(cursor, position, T::DATA_TYPE))
    };
    List { elements, read, run }
}

/// Reads numbers for as long as each has a comma behind it, and says how many: nearly all of a large request, of which
/// each number costs less so than by itself.
fn run<T: FromNumber>(cursor: &mut Cursor<'_>, elements: &mut Vec<T>) -> usize {
    let (before, mut rest) = (elements.len(), cursor.rest());
    let all = rest.len();
    while elements.len() < MAX_ELEMENTS
        && let Some(number) = Number::read(rest)
        && let Some((b',', after)) = rest.get(number.len()..).and_then(<[u8]>::split_first)
        && let Some(element) = T::from_number(&number)
    {
        elements.push(element);
        rest = after.strip_prefix(b" ").unwrap_or(after);
    }
    cursor.advance(all - rest.len());
    elements.len() - before
}

/// Leaves all to be read one by one.
fn none<T>(_: &mut Cursor<'_>, _: &mut Vec<T>) -> usize {
    0
}

/// The number that comes next, if it is one of `T`.
fn number<T: FromNumber>(cursor: &mut Cursor<'_>) -> Option<T> {
    let number = Number::read(cursor.rest())?;
    let value = T::from_number(&number)?;
    cursor.advance(number.len());
    Some(value)
}

/// `true`, `false`, 1 or 0.
fn boolean(cursor: &mut Cursor<'_>, position: usize) -> Result<bool, CursorError> {
    match number::<u8>(&mut cursor.clone()) {
        Some(value @ (0 | 1)) => cursor.skip().map(|()| value == 1),
        _ => {
            let value = cursor.clone().value().map_err(|_| other(cursor, position, DataType::Bool))?;
            cursor.skip().map(|()| value)
        }
    }
}

fn text(cursor: &mut Cursor<'_>, position: usize) -> Result<String, CursorError> {
    if cursor.ahead()? == Next::Text {
        return cursor.text().map(Cow::into_owned);
    }
    Err(other(cursor, position, DataType::String))
}

/// Says what stands where an element of this type should.
fn other(cursor: &Cursor<'_>, position: usize, data_type: DataType) -> CursorError {
    /// So much of it is shown.
    const SHOWN: usize = 32;
    match cursor.clone().value::<&RawValue>() {
        Ok(value) => {
            let start: String = value.get().chars().take(SHOWN).collect();
            let hint = match value.get().starts_with('"') {
                true if data_type != DataType::String => ": only BYTES tensors take strings",
                _ => "",
            };
            cursor.wrong(&format!("element {position} ({start}) is not of type {data_type}{hint}"))
        }
        Err(error) => error,
    }
}
