//! What documents look like: one table for the reader and for the published schema, so that neither knows a field
//! that the other does not.

/// A field that exists elsewhere but is not enforced here, and what to do instead.
pub(crate) type Instead = (&'static str, &'static str);

/// The fields that a mapping may have.
pub(crate) struct Schema {
    /// What the mapping is for.
    pub(crate) about: &'static str,
    /// Those that are read.
    pub(crate) known: &'static [Field],
    /// Those that are refused with a hint.
    pub(crate) refused: &'static [Instead],
}

/// One field of a mapping.
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) shape: Shape,
    pub(crate) about: &'static str,
    pub(crate) required: bool,
}

/// What a value may be.
#[derive(Clone, Copy)]
pub(crate) enum Shape {
    /// A string.
    Text,
    /// A string with a known form, as a regular expression (RE2).
    Form(&'static str),
    /// `true` or `false`.
    Bool,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A whole number between two bounds, both included.
    Number(u32, u32),
    /// A number, or a word: a port or its name.
    NumberOrWord,
    /// A mapping from strings to strings.
    Labels,
    /// A list of at least and at most so many items.
    List(Item, usize, usize),
    /// A mapping with fields of its own.
    Map(&'static Schema),
    /// What Kubernetes keeps there; not looked into.
    Opaque,
}

/// What an item of a list may be.
#[derive(Clone, Copy)]
pub(crate) enum Item {
    /// A string.
    Text,
    /// A string with a known form, as a regular expression (RE2).
    Form(&'static str),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A mapping with fields of its own.
    Map(&'static Schema),
}

/// An optional field.
pub(crate) const fn field(name: &'static str, shape: Shape, about: &'static str) -> Field {
    Field {
        name,
        shape,
        about,
        required: false,
    }
}

impl Field {
    /// The same field, which must be there.
    pub(crate) const fn required(mut self) -> Self {
        self.required = true;
        self
    }
}

impl Schema {
    /// Whether a field of this name is read.
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.known.iter().any(|field| field.name == name)
    }

    /// The names of the fields that are read, in the order of the table.
    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.known.iter().map(|field| field.name).collect()
    }
}
