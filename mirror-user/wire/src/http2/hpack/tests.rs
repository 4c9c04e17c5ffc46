use proptest::prelude::*;

use super::*;

/// A simple encoder, which does with its table what it is told to.
#[derive(Clone, Debug)]
pub(in crate::http2) struct Encoder {
    table: VecDeque<(Vec<u8>, Vec<u8>)>,
    capacity: usize,
}

/// How a field is written.
#[derive(Clone, Copy, Debug)]
pub(in crate::http2) enum Form {
    /// By indices where there are any, else entered.
    Indexed,
    /// Its name by an index where there is one.
    Literal,
    /// In full, and entered.
    Entered,
}

impl Encoder {
    pub(in crate::http2) fn new() -> Self {
        Self {
            table: VecDeque::new(),
            capacity: DEFAULT_SIZE,
        }
    }

    pub(in crate::http2) fn resize(&mut self, capacity: usize, block: &mut Vec<u8>) {
        integer(block, 0x20, 5, capacity);
        self.capacity = capacity;
        self.evict(0);
    }

    fn evict(&mut self, more: usize) {
        let size = |(name, value): &(Vec<u8>, Vec<u8>)| name.len() + value.len() + OVERHEAD;
        while self.table.iter().map(size).sum::<usize>() + more > self.capacity
            && self.table.pop_back().is_some()
        {}
    }

    fn find(&self, is_it: impl Fn(&[u8], &[u8]) -> bool) -> Option<usize> {
        let fixed = fixed::TABLE.iter();
        let fixed = fixed.map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        let own = self.table.iter();
        let own = own.map(|(name, value)| (&name[..], &value[..]));
        let mut all = fixed.chain(own);
        all.position(|(name, value)| is_it(name, value))
            .map(|place| place + 1)
    }

    pub(in crate::http2) fn field(
        &mut self,
        (name, value): (&[u8], &[u8]),
        form: Form,
        huffman: bool,
        block: &mut Vec<u8>,
    ) {
        let whole = self.find(|known, with| (known, with) == (name, value));
        if let (Some(index), Form::Indexed) = (whole, form) {
            return integer(block, 0x80, 7, index);
        }
        let (mark, prefix) = match form {
            Form::Literal => (0x10, 4),
            Form::Indexed | Form::Entered => (0x40, 6),
        };
        match self
            .find(|known, _| known == name)
            .filter(|_| !matches!(form, Form::Entered))
        {
            Some(index) => integer(block, mark, prefix, index),
            None => {
                integer(block, mark, prefix, 0);
                string(block, name, huffman);
            }
        }
        string(block, value, huffman);
        if !matches!(form, Form::Literal) {
            let size = name.len() + value.len() + OVERHEAD;
            self.evict(size);
            if size <= self.capacity {
                self.table.push_front((name.to_vec(), value.to_vec()));
            }
        }
    }
}

fn integer(block: &mut Vec<u8>, mark: u8, prefix: u32, number: usize) {
    let most = (1 << prefix) - 1;
    if number < most {
        return block.push(mark | number as u8);
    }
    block.push(mark | most as u8);
    let mut rest = number - most;
    while rest >= 0x80 {
        block.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    block.push(rest as u8);
}

fn string(block: &mut Vec<u8>, text: &[u8], huffman: bool) {
    let coded = huffman.then(|| huffman::encode(text));
    let (mark, text) = coded.as_deref().map_or((0, text), |coded| (0x80, coded));
    integer(block, mark, 7, text.len());
    block.extend_from_slice(text);
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn decoded(decoder: &mut Decoder, block: &[u8]) -> Result<String, &'static str> {
    let mut fields = Vec::new();
    let text = |part: Option<Bytes>| {
        part.map_or("?".into(), |part| {
            String::from_utf8_lossy(&part).into_owned()
        })
    };
    decoder.decode(block, |field| {
        fields.push(text(field.name) + "=" + &text(field.value))
    })?;
    Ok(fields.join("; "))
}

fn table(decoder: &Decoder) -> (usize, usize) {
    (decoder.entries.len(), decoder.size)
}

fn memory() -> Memory {
    Memory::new(1 << 20)
}

/// A decoder that joined in the middle.
fn joined() -> Decoder {
    let mut decoder = Decoder::new(&memory());
    decoder.forget();
    decoder
}

#[test]
fn integers() {
    // Appendix C.1.
    assert_eq!(Block(&[0xea]).integer(5), Ok(10));
    assert_eq!(Block(&[0x1f, 0x9a, 0x0a]).integer(5), Ok(1337));
    assert_eq!(Block(&[0x2a]).integer(8), Ok(42));
    assert!(Block(&[0xff; 6]).integer(5).is_err());
    assert_eq!(Block(&[0x1f, 0x80]).integer(5), Err(CUT_OFF));
}

#[test]
fn single_fields() {
    // Appendix C.2.
    for (block, expected, entries) in [
        (
            "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
            "custom-key=custom-header",
            (1, 55),
        ),
        (
            "040c 2f73 616d 706c 652f 7061 7468",
            ":path=/sample/path",
            (0, 0),
        ),
        (
            "1008 7061 7373 776f 7264 0673 6563 7265 74",
            "password=secret",
            (0, 0),
        ),
        ("82", ":method=GET", (0, 0)),
    ] {
        let mut decoder = Decoder::new(&memory());
        assert_eq!(decoded(&mut decoder, &hex(block)).as_deref(), Ok(expected));
        assert_eq!(table(&decoder), entries);
    }
}

#[test]
fn requests_of_one_connection() {
    // Appendices C.3 and C.4.
    let plain = [
        "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "8286 84be 5808 6e6f 2d63 6163 6865",
        "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
    ];
    let huffman = [
        "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
        "8286 84be 5886 a8eb 1064 9cbf",
        "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
    ];
    for blocks in [plain, huffman] {
        let mut decoder = Decoder::new(&memory());
        let expected = [
            (
                ":method=GET; :scheme=http; :path=/; :authority=www.example.com",
                (1, 57),
            ),
            (
                ":method=GET; :scheme=http; :path=/; :authority=www.example.com; cache-control=no-cache",
                (2, 110),
            ),
            (
                ":method=GET; :scheme=https; :path=/index.html; :authority=www.example.com; \
                 custom-key=custom-value",
                (3, 164),
            ),
        ];
        for (block, (fields, entries)) in blocks.into_iter().zip(expected) {
            assert_eq!(decoded(&mut decoder, &hex(block)).as_deref(), Ok(fields));
            assert_eq!(table(&decoder), entries);
        }
    }
}

#[test]
fn responses_with_eviction() {
    // Appendices C.5 and C.6: a table of 256 bytes.
    let plain = [
        "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120
         474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "4803 3330 37c1 c0bf",
        "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738
         666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33
         3630 303b 2076 6572 7369 6f6e 3d31",
    ];
    let huffman = [
        "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718
         63c7 8f0b 97c8 e9ae 82ae 43d3",
        "4883 640e ffc1 c0bf",
        "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7
         b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
    ];
    for blocks in [plain, huffman] {
        let mut decoder = Decoder::new(&memory());
        decoder.resize(256).unwrap();
        let first = "cache-control=private; date=Mon, 21 Oct 2013 20:13:21 GMT; location=https://www.example.com";
        let expected = [
            (format!(":status=302; {first}"), (4, 222)),
            (format!(":status=307; {first}"), (4, 222)),
            (
                ":status=200; cache-control=private; date=Mon, 21 Oct 2013 20:13:22 GMT; \
                 location=https://www.example.com; content-encoding=gzip; \
                 set-cookie=foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"
                    .into(),
                (3, 215),
            ),
        ];
        for (block, (fields, entries)) in blocks.into_iter().zip(expected) {
            assert_eq!(decoded(&mut decoder, &hex(block)), Ok(fields));
            assert_eq!(table(&decoder), entries);
        }
    }
}

#[test]
fn what_was_sent_before_is_unknown_until_it_is_gone() {
    let mut decoder = joined();
    let mut check = |block: &[u8], expected: &str| {
        assert_eq!(
            decoded(&mut decoder, block).as_deref(),
            Ok(expected),
            "{block:x?}"
        );
    };
    // The newest entry of before; a new one with the name of it; both by their indices.
    check(&[0xbe], "?=?");
    check(&[0x7e, 1, b'v'], "?=v");
    check(&[0xbe, 0xbf], "?=v; ?=?");
    check(&[0x40, 1, b'n', 1, b'v'], "n=v");
    check(&[0xbe, 0xbf, 0xc0, 0x83], "n=v; ?=v; ?=?; :method=POST");
    assert!(!decoder.is_healed());
    // From here on the table holds two such entries, and the older ones are gone.
    let mut size = Vec::new();
    integer(&mut size, 0x20, 5, 70);
    assert_eq!(decoded(&mut decoder, &size).as_deref(), Ok(""));
    assert!(!decoder.is_healed());
    for _ in 0..2 {
        decoded(&mut decoder, &[0x40, 1, b'n', 1, b'v']).unwrap();
    }
    assert!(decoder.is_healed());
    assert_eq!(
        decoded(&mut decoder, &[0xbe, 0xbf]).as_deref(),
        Ok("n=v; n=v")
    );
    assert!(decoded(&mut decoder, &[0xc0]).is_err());
}

#[test]
fn a_table_that_was_emptied_is_known() {
    for empties in [
        // Of no size, and as large as before again.
        hex("20 3f e1 1f"),
        // Of 64 bytes, and an entry that is larger.
        [&hex("3f 21 40 01 6e 40")[..], &[b'v'; 64]].concat(),
    ] {
        let mut decoder = joined();
        decoded(&mut decoder, &empties).unwrap();
        assert!(decoder.is_healed());
        assert!(decoded(&mut decoder, &[0xbe]).is_err());
    }
}

#[test]
fn what_does_not_fit_this_reader_is_unknown() {
    let little = Memory::new(100);
    let mut decoder = Decoder::new(&little);
    for _ in 0..3 {
        decoded(&mut decoder, &[0x40, 1, b'n', 1, b'v']).unwrap();
    }
    assert_eq!(
        decoded(&mut decoder, &[0xbe, 0xbf]).as_deref(),
        Ok("?=?; ?=?")
    );
    assert!(!decoder.is_healed());
    drop(decoder);
    assert_eq!(little.used(), 0);

    let mut decoder = Decoder::new(&memory());
    decoder.ceiling = None;
    let mut block = Vec::new();
    integer(&mut block, 0x20, 5, 1 << 20);
    for length in [1, 70_000, 1] {
        integer(&mut block, 0x40, 6, 0);
        string(&mut block, b"n", false);
        string(&mut block, &vec![b'v'; length], false);
    }
    decoded(&mut decoder, &block).unwrap();
    assert_eq!(
        decoded(&mut decoder, &[0xbe, 0xbf, 0xc0]).as_deref(),
        Ok("n=v; ?=?; ?=?")
    );
}

#[test]
fn malformed_blocks() {
    for block in [
        "80",
        "be",
        "ff ff ff ff ff 01",
        "40",
        "40 02 61",
        "00 01 61",
        "82 20",
        "3f e2 1f",
        "41 81 00",
    ] {
        let mut decoder = Decoder::new(&memory());
        assert!(decoded(&mut decoder, &hex(block)).is_err(), "{block}");
    }
}

prop_compose! {
    fn block()(
        size in prop::option::weighted(0.1, 0_usize..DEFAULT_SIZE),
        fields in prop::collection::vec((0_usize..12, 0_usize..40, 0..3, any::<bool>()), 0..12),
    ) -> (Option<usize>, Vec<(String, String, Form, bool)>) {
        let field = |(name, value, form, huffman): (usize, usize, i32, bool)| {
            let name = ["content-type", ":path", "x"].get(name).map_or(format!("n{name}"), ToString::to_string);
            let form = [Form::Indexed, Form::Literal, Form::Entered][form as usize];
            (name, "v".repeat(value * value / 2), form, huffman)
        };
        (size, fields.into_iter().map(field).collect())
    }
}

proptest! {
    /// From any block on, what is known is what was sent; from the first one on, all is.
    #[test]
    fn blocks_survive(blocks in prop::collection::vec(block(), 1..30), join in 0_usize..30) {
        let mut encoder = Encoder::new();
        let mut whole = Decoder::new(&memory());
        let mut late = joined();
        for (number, (size, fields)) in blocks.iter().enumerate() {
            let mut block = Vec::new();
            if let Some(size) = size {
                encoder.resize(*size, &mut block);
            }
            for (name, value, form, huffman) in fields {
                encoder.field((name.as_bytes(), value.as_bytes()), *form, *huffman, &mut block);
            }
            let expected: Vec<_> = fields.iter().map(|(name, value, ..)| Field {
                name: Some(Bytes::from(name.clone())),
                value: Some(Bytes::from(value.clone())),
            }).collect();
            let mut got = Vec::new();
            prop_assert_eq!(whole.decode(&block, |field| got.push(field)), Ok(()));
            prop_assert_eq!(&got, &expected);
            if number >= join {
                let mut got = Vec::new();
                let was_healed = late.is_whole && late.is_healed();
                prop_assert_eq!(late.decode(&block, |field| got.push(field)), Ok(()));
                prop_assert_eq!(got.len(), expected.len());
                for (got, expected) in got.iter().zip(&expected) {
                    prop_assert!(got.name.is_none() || got.name == expected.name);
                    prop_assert!(got.value.is_none() || got.value == expected.value);
                    prop_assert!(got.is_known() || !was_healed);
                }
            }
        }
    }

    #[test]
    fn anything_is_decoded_or_refused(block in prop::collection::vec(any::<u8>(), 0..200)) {
        for mut decoder in [Decoder::new(&memory()), joined()] {
            let mut count = 0;
            let _ = decoder.decode(&block, |_| count += 1);
            prop_assert!(count <= block.len());
            prop_assert!(decoder.size <= MAX_SIZE);
        }
    }
}
