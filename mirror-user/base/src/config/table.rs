//! Reads a TOML table key by key, remembers where each value stands, and collects every problem
//! rather than stop at the first.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::errors::{Fault, Problem};

/// The problems found so far.
#[derive(Debug, Default)]
pub struct Problems(RefCell<Vec<Problem>>);

impl Problems {
    /// Notes a problem.
    pub fn add(&self, span: Range<usize>, fault: Fault) {
        self.0.borrow_mut().push(Problem { span, fault });
    }

    /// Refuses items that stand twice.
    pub fn refuse_twins<'a, T: Eq + Hash + fmt::Display + 'a>(
        &self,
        items: impl IntoIterator<Item = &'a Spanned<T>>,
        noun: &str,
        cure: &str,
    ) {
        let mut seen = HashSet::new();
        for item in items {
            if !seen.insert(item.get_ref()) {
                let what = format!("{noun} {} stands here a second time", item.get_ref());
                self.add(item.span(), Fault::new(what, cure));
            }
        }
    }

    /// Whether there is one at this very place.
    fn stand_at(&self, span: &Range<usize>) -> bool {
        self.0.borrow().iter().any(|problem| problem.span == *span)
    }

    /// `value` when nothing was found.
    pub fn into_result<T>(self, value: Option<T>) -> Result<T, Vec<Problem>> {
        let problems = self.0.into_inner();
        match value {
            Some(value) if problems.is_empty() => Ok(value),
            _ => Err(problems),
        }
    }
}

/// Takes the text apart; what is not TOML is a problem.
pub fn parse(text: &str) -> Result<Spanned<DeTable<'_>>, Vec<Problem>> {
    let (table, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(table);
    }
    let problem = |error: toml::de::Error| Problem {
        span: error.span().unwrap_or(0..0),
        fault: Fault::new(
            format!("not TOML: {}", error.message()),
            "strings stand in quotes, lists in [brackets]; `modelmirror config default` prints an example",
        ),
    };
    Err(errors.into_iter().map(problem).collect())
}

/// A table whose keys are being read.
#[derive(Debug)]
pub struct Section<'a> {
    path: String,
    span: Range<usize>,
    table: &'a DeTable<'a>,
    known: Vec<&'static str>,
    problems: &'a Problems,
}

impl<'a> Section<'a> {
    /// The whole file.
    pub fn root(table: &'a Spanned<DeTable<'a>>, problems: &'a Problems) -> Self {
        Self {
            path: String::new(),
            span: 0..0,
            table: table.get_ref(),
            known: Vec::new(),
            problems,
        }
    }

    /// Where a key stands, if it is there.
    pub fn place_of(&self, key: &str) -> Option<Range<usize>> {
        let (key, _) = self.table.get_key_value(key)?;
        Some(key.span())
    }

    /// Where the section begins.
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    fn raw(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.known.push(key);
        self.table.get(key)
    }

    fn named(&self, key: &str) -> String {
        match self.path.as_str() {
            "" => format!("`{key}`"),
            path => format!("`{key}` in [{path}]"),
        }
    }

    fn read<T>(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        parse: impl FnOnce(&DeValue<'_>) -> Result<T, Fault>,
    ) -> Option<Spanned<T>> {
        match parse(value.get_ref()) {
            Ok(parsed) => Some(Spanned::new(value.span(), parsed)),
            Err(Fault { what, cure }) => {
                let what = format!("{}: {what}", self.named(key));
                self.problems.add(value.span(), Fault { what, cure });
                None
            }
        }
    }

    /// The value of a key that may be left out.
    pub fn optional<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&DeValue<'_>) -> Result<T, Fault>,
    ) -> Option<Spanned<T>> {
        let value = self.raw(key)?;
        self.read(key, value, parse)
    }

    /// The value of a key that must be there; `example` is what one could write.
    pub fn required<T>(
        &mut self,
        key: &'static str,
        example: &str,
        parse: impl FnOnce(&DeValue<'_>) -> Result<T, Fault>,
    ) -> Option<Spanned<T>> {
        if let Some(value) = self.raw(key) {
            return self.read(key, value, parse);
        }
        self.missing(key, example);
        None
    }

    /// Whether a key is there, whatever its value.
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Whether a key is there with something in its list, or with what is no list.
    pub fn is_filled(&self, key: &str) -> bool {
        match self.table.get(key).map(Spanned::get_ref) {
            None => false,
            Some(DeValue::Array(items)) => !items.is_empty(),
            Some(_) => true,
        }
    }

    /// Notes a problem of this section.
    pub fn refuse(&self, place: Range<usize>, fault: Fault) {
        self.problems.add(place, fault);
    }

    fn missing(&self, key: &str, example: &str) {
        self.lacks(key, format!("add a line such as: {example}"));
    }

    /// Notes that a key is missing, and what cures it.
    pub fn lacks(&self, key: &str, cure: impl Into<String>) {
        let what = format!("{} is missing", self.named(key));
        self.problems.add(self.span(), Fault::new(what, cure));
    }

    /// Refuses a key that there was in earlier versions, with words for what came instead.
    pub fn gone(&mut self, key: &'static str, why: &str, cure: &str) {
        if let Some(place) = self.place_of(key) {
            self.known.push(key);
            let what = format!("{} is no longer supported: {why}", self.named(key));
            self.problems.add(place, Fault::new(what, cure));
        }
    }

    /// The value of a key, or what it is when left out.
    pub fn or<T>(
        &mut self,
        key: &'static str,
        default: T,
        parse: impl FnOnce(&DeValue<'_>) -> Result<T, Fault>,
    ) -> Spanned<T> {
        self.optional(key, parse)
            .unwrap_or_else(|| Spanned::new(self.span(), default))
    }

    /// The same, where it does not matter where it stands.
    pub fn value<T>(
        &mut self,
        key: &'static str,
        default: T,
        parse: impl FnOnce(&DeValue<'_>) -> Result<T, Fault>,
    ) -> T {
        self.or(key, default, parse).into_inner()
    }

    /// The value of a key that may be left out, where it does not matter where it stands.
    pub fn maybe<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&DeValue<'_>) -> Result<T, Fault>,
    ) -> Option<T> {
        self.optional(key, parse).map(Spanned::into_inner)
    }

    /// The items of a list that may be left out.
    pub fn list<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&DeValue<'_>) -> Result<T, Fault>,
    ) -> Option<Vec<Spanned<T>>> {
        let value = self.raw(key)?;
        let DeValue::Array(items) = value.get_ref() else {
            let what = format!("{} is a list", self.named(key));
            let cure = "write it in brackets: [\"one\", \"two\"]";
            self.problems.add(value.span(), Fault::new(what, cure));
            return None;
        };
        Some(
            items
                .iter()
                .filter_map(|item| self.read(key, item, &parse))
                .collect(),
        )
    }

    /// The items of a list that must be there and must not be empty.
    pub fn required_list<T>(
        &mut self,
        key: &'static str,
        example: &str,
        parse: impl Fn(&DeValue<'_>) -> Result<T, Fault>,
    ) -> Vec<Spanned<T>> {
        let items = self.list(key, parse);
        if !self.is_filled(key) {
            self.missing(key, example);
        }
        items.unwrap_or_default()
    }

    /// A table below this one.
    pub fn section(&mut self, key: &'static str) -> Option<Self> {
        let value = self.raw(key)?;
        let below = self.below(key, value);
        if below.is_none() {
            let what = format!("{} is a section", self.named(key));
            let cure = format!("write [{}] on a line of its own", self.path_of(key));
            self.problems.add(value.span(), Fault::new(what, cure));
        }
        below
    }

    /// The tables of a list of tables.
    pub fn sections(&mut self, key: &'static str) -> Vec<Self> {
        let Some(value) = self.raw(key) else {
            return Vec::new();
        };
        let sections = match value.get_ref() {
            DeValue::Array(items) => items.iter().map(|item| self.below(key, item)).collect(),
            _ => None,
        };
        sections.unwrap_or_else(|| {
            let what = format!("{} is a list of sections", self.named(key));
            let cure = format!("write [[{}]] with two brackets", self.path_of(key));
            self.problems.add(value.span(), Fault::new(what, cure));
            Vec::new()
        })
    }

    /// Notes that there is not one section of a list of sections.
    pub fn missing_sections(&self, key: &str, keys: &str) {
        let cure = format!("add a [[{}]] with {keys}", self.path_of(key));
        self.lacks_sections(key, cure);
    }

    /// The same, with words of its own for the cure.
    pub fn lacks_sections(&self, key: &str, cure: String) {
        if self.has(key) {
            return;
        }
        let what = format!("there is no [[{}]]", self.path_of(key));
        self.problems.add(self.span(), Fault::new(what, cure));
    }

    fn below(&self, key: &str, value: &'a Spanned<DeValue<'a>>) -> Option<Self> {
        let DeValue::Table(table) = value.get_ref() else {
            return None;
        };
        Some(Self {
            path: self.path_of(key),
            span: value.span(),
            table,
            known: Vec::new(),
            problems: self.problems,
        })
    }

    fn path_of(&self, key: &str) -> String {
        match self.path.as_str() {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        }
    }

    /// Notes what is wrong with a value below this section, `canary.min_requests` or `gate.0.min`,
    /// unless a problem was found there already: then it is not what was typed.
    pub fn refuse_below(&self, path: &str, Fault { what, cure }: Fault) {
        let span = self.place(path);
        if !self.problems.stand_at(&span) {
            let what = format!("{}: {what}", self.name_below(path));
            self.problems.add(span, Fault { what, cure });
        }
    }

    /// Where a value below this section stands, as far along its path as the text goes.
    fn place(&self, path: &str) -> Range<usize> {
        let mut steps = path.split('.');
        let first = steps.next().and_then(|key| self.table.get(key));
        let Some(mut at) = first else {
            return self.span();
        };
        for step in steps {
            let below = match step.parse::<usize>() {
                Ok(index) => at.get_ref().get(index),
                Err(_) => at.get_ref().get(step),
            };
            let Some(below) = below else { break };
            at = below;
        }
        at.span()
    }

    /// The value's name, and that of its section.
    fn name_below(&self, path: &str) -> String {
        let steps = path
            .split('.')
            .filter(|step| step.parse::<usize>().is_err());
        let mut steps: Vec<&str> = steps.collect();
        let key = steps.pop().unwrap_or_default();
        let sections = [self.path.as_str()].into_iter().chain(steps);
        let sections: Vec<&str> = sections.filter(|name| !name.is_empty()).collect();
        match sections.join(".").as_str() {
            "" => format!("`{key}`"),
            path => format!("`{key}` in [{path}]"),
        }
    }

    /// Refuses what was not asked for.
    pub fn finish(self) {
        for (key, _) in self.table {
            let name: &str = key.get_ref();
            if self.known.contains(&name) {
                continue;
            }
            let cure = match nearest(name, &self.known) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known here: {}", self.known.join(", ")),
            };
            let what = format!("unknown key {}", self.named(name));
            self.problems.add(key.span(), Fault::new(what, cure));
        }
    }
}

/// The known key that a mistyped one is nearest to, if any is near.
pub fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let name = name.to_lowercase().replace('-', "_");
    known
        .iter()
        .map(|&key| (strsim::jaro_winkler(&name, key), key))
        .filter(|&(likeness, _)| likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, key)| key)
}
