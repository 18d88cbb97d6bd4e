"""CMCD in both versions: the standards' own examples, round trips, and nothing that can break the reader."""

import string
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.telemetry import cmcd as module
from serve.telemetry.cmcd import KINDS, MAX_LENGTH, OBJECT_TYPES, TOKENS, Item, Kind, Token, Value, read, written

# Examples of CTA-5004, section "Examples", decoded from their percent-encoding.
V1_EXAMPLES = [
    ('sid="6e2fb550-c457-11e9-bb97-0800200c9a66"', {"sid": "6e2fb550-c457-11e9-bb97-0800200c9a66"}),
    (
        'br=3200,bs,d=4004,mtp=25400,ot=v,rtp=15000,sid="6e2fb550-c457-11e9-bb97-0800200c9a66",tb=6000',
        {
            "br": 3200,
            "bs": True,
            "d": 4004,
            "mtp": 25400,
            "ot": "v",
            "rtp": 15000,
            "sid": "6e2fb550-c457-11e9-bb97-0800200c9a66",
            "tb": 6000,
        },
    ),
    (
        'b,rtp=15000,sid="6e2fb550-c457-11e9-bb97-0800200c9a66"',
        {"b": True, "rtp": 15000, "sid": "6e2fb550-c457-11e9-bb97-0800200c9a66"},
    ),
    ("bs,su", {"bs": True, "su": True}),
    (
        'd=4004,com.example-myNumericKey=500,com.examplemyStringKey="myStringValue"',
        {"d": 4004, "com.example-myNumericKey": 500, "com.examplemyStringKey": "myStringValue"},
    ),
    (
        'nor="..%2F300kbps%2Fsegment35.m4v",sid="6e2f"',
        {"nor": "..%2F300kbps%2Fsegment35.m4v", "sid": "6e2f"},
    ),
    ('nrr="12323-48763",sid="6e2f"', {"nrr": "12323-48763", "sid": "6e2f"}),
]
HEADER_KEYS = {
    "bl",
    "dl",
    "mtp",
    "nor",
    "nrr",
    "su",
    "br",
    "d",
    "ot",
    "tb",
    "bs",
    "rtp",
    "cid",
    "pr",
    "sf",
    "sid",
    "st",
}
V1_HEADERS = [
    'bl=21300,dl=18500,mtp=48100,nor="..%2F300kbps%2Ftrack.m4v",nrr="12323-48763",su',
    "br=3200,d=4004,ot=v,tb=6000",
    "bs,rtp=12000",
    'cid="faec5fc2-ac30-11ea-bb37-0242ac130002",pr=1.08,sf=d,sid="6e2fb550-c457-11e9-bb97-0800200c9a66",st=v',
]


@pytest.mark.parametrize(("text", "values"), V1_EXAMPLES)
def test_examples_of_version_1(text: str, values: dict[str, Value]) -> None:
    cmcd = read([text])
    assert (cmcd.values, cmcd.malformed, cmcd.version) == (values, (), 1)


def test_the_four_headers_are_one_dictionary() -> None:
    cmcd = read(V1_HEADERS)
    assert cmcd.malformed == ()
    assert set(cmcd.values) == HEADER_KEYS
    assert (cmcd.number("bl"), cmcd.number("pr"), cmcd.flag("su"), cmcd.text("st")) == (21300, 1.08, True, "v")


def test_version_2_gives_numbers_by_object_type() -> None:
    cmcd = read(['bl=(12300;v 14100;a),br=(3200;v 128;a),ltc=2400,mtp=(25400),sn=7,sta=p,v=2,sid="s",cdn="east"'])
    assert (cmcd.malformed, cmcd.version) == ((), 2)
    assert cmcd.values["br"] == (Item(3200, {"v": True}), Item(128, {"a": True}))
    assert (cmcd.number("br", "v"), cmcd.number("br", "a"), cmcd.number("mtp", "v")) == (3200, 128, 25400)
    assert (cmcd.number("bl", "a"), cmcd.number("ltc"), cmcd.text("cdn")) == (14100, 2400, "east")


def test_version_2_lists_of_strings_hold_what_they_like() -> None:
    cmcd = read([r'nor=("a).m4s" "b,\"c\".m4s";r="0-99"),v=2,ec=("E1")'])
    assert cmcd.values["nor"] == (Item("a).m4s"), Item('b,"c".m4s', {"r": "0-99"}))
    assert cmcd.values["ec"] == (Item("E1"),)


MALFORMED = [
    ("bl=abc", ("bl",)),
    ("bl=-5", ("bl",)),
    ("bl=1.5", ("bl",)),
    ('br="3200"', ("br",)),
    ("sid=unquoted", ("sid",)),
    (f'sid="{"x" * 129}"', ("sid",)),
    ("ot=zz", ("ot",)),
    ('ot="v"', ("ot",)),
    ("su=1", ("su",)),
    ("pr=fast", ("pr",)),
    ("br=(1;v 2", ("br",)),
    ("br=()", ("br",)),
    ("br=(1;v 2;;)", ("br",)),
    ('sid="open', ("sid",)),
    ("d=99999999999999999999", ("d",)),
    ("=5", ("?",)),
    ("bl=\x00", ("bl",)),
    (",,", ("?",)),
]


@pytest.mark.parametrize(("text", "malformed"), MALFORMED)
def test_what_is_malformed_is_named_and_costs_nothing_else(text: str, malformed: tuple[str, ...]) -> None:
    cmcd = read([text, "mtp=2100"])
    assert cmcd.malformed == malformed
    assert dict(cmcd.values) == {"mtp": 2100}


def test_what_follows_something_malformed_is_read() -> None:
    cmcd = read(['bl=?,br=3200,sid="a,b",d=x y,tb=6000'])
    assert set(cmcd.malformed) == {"bl", "d"}
    assert dict(cmcd.values) == {"br": 3200, "sid": "a,b", "tb": 6000}


def test_the_last_of_a_key_counts_and_words_are_booleans_too() -> None:
    cmcd = read(["bl=1,bs=false,su=?0", "bl=2"])
    assert dict(cmcd.values) == {"bl": 2, "bs": False, "su": False}
    assert not cmcd.flag("bs")


def test_error_codes_may_be_numbers_without_quotes() -> None:
    cmcd = read(["e=e,ec=27,pb=(950;v 64;a)"])  # as dash.js 5.2.1 writes
    assert (cmcd.values["ec"], cmcd.number("pb"), cmcd.malformed) == ("27", 950, ())
    assert read(['ec=(27 "E2")']).values["ec"] == (Item("27"), Item("E2"))
    for wrong in ("ec=-1", "ec=1.5", "ec=E2", "ec", "ec=()", "ec=(1.5)"):
        assert read([wrong]).malformed == ("ec",)


def test_much_is_not_read() -> None:
    cmcd = read(["a=1," * MAX_LENGTH])
    assert (dict(cmcd.values), cmcd.malformed) == ({"a": 1}, ("?",))


@given(st.lists(st.text(max_size=60), max_size=4))
def test_any_text_is_read(texts: list[str]) -> None:
    cmcd = read(texts)
    assert set(cmcd.values).isdisjoint({""})


@given(st.text(alphabet='abv=();", ?01\\.-', max_size=60))
def test_any_text_of_its_own_letters_is_read_and_can_be_written(text: str) -> None:
    cmcd = read([text])
    assert read([written(cmcd.values)]).values == cmcd.values


PLAIN = st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_categories=["Cc"])
TEXTS = st.text(PLAIN, max_size=40)
INTEGERS = st.integers(0, 10**15 - 1)
DECIMALS = st.integers(0, 10**9).map(lambda number: number / 1000)
WORDS = st.from_regex(r"[a-z][a-z0-9_./:-]{0,8}", fullmatch=True).map(Token)
PARAMETERS = st.dictionaries(st.sampled_from(sorted(OBJECT_TYPES)), st.just(value=True), max_size=2)


def by_kind(key: str) -> st.SearchStrategy[Any]:
    kind = KINDS[key]
    if kind is Kind.INTEGERS:
        return INTEGERS | st.lists(st.builds(Item, INTEGERS, PARAMETERS), min_size=1, max_size=4).map(tuple)
    if kind is Kind.TEXTS:
        return TEXTS | st.lists(st.builds(Item, TEXTS), min_size=1, max_size=3).map(tuple)
    if kind is Kind.TOKEN:
        return st.sampled_from(sorted(TOKENS[key])).map(Token) if key in TOKENS else WORDS
    return {
        Kind.INTEGER: INTEGERS,
        Kind.DECIMAL: DECIMALS | INTEGERS,
        Kind.BOOLEAN: st.booleans(),
        Kind.TEXT: TEXTS,
    }[kind]


CUSTOM = st.text(string.ascii_letters + string.digits + ".-", max_size=10).map(lambda tail: f"com.example-{tail}")
DICTIONARIES = st.builds(
    lambda known, custom: known | custom,
    st.fixed_dictionaries({}, optional={key: by_kind(key) for key in KINDS}),
    st.dictionaries(CUSTOM, INTEGERS | DECIMALS | TEXTS | WORDS | st.booleans(), max_size=3),
)


@given(DICTIONARIES)
def test_what_is_written_is_read_again(values: dict[str, Value]) -> None:
    cmcd = read([written(values)])
    assert cmcd.malformed == ()
    assert dict(cmcd.values) == values
    for key, value in values.items():
        assert type(cmcd.values[key]) is type(value) or isinstance(value, float | int)


@pytest.mark.parametrize("values", [{"a b": 1}, {"x": "a\nb"}, {"x": Token("a b")}, {"x": 10**15}, {"x": float("nan")}])
def test_what_cannot_be_written_is_refused(values: dict[str, Value]) -> None:
    with pytest.raises(ValueError, match=r"no |control"):
        written(values)


def closely(texts: list[str]) -> tuple[list[tuple[str, type, Value]], list[str]]:
    """What is read without the short cut for usual texts: keys in order, with types, and what was malformed."""
    values: dict[str, Value] = {}
    malformed: dict[str, None] = {}
    for text in texts:
        module._read_closely(text, values, malformed)
    return typed(values), list(malformed)


def typed(values: Any) -> list[tuple[str, type, Value]]:
    return [(key, type(value), value) for key, value in values.items()]


PIECES = st.sampled_from(
    [
        "bl=1", "bl=", "bl=-1", "bl=1.5", "bl=007", "bl=1234567890123456", "bl=\u0663", "bl=\u00b2", " bl=2",
        "bl=2 ", "bl =2", "bl=2\n", "bs", "bs=?0", "bs=false", "bs=1", "su;a=1", "br=(1;v 2;a)", "br=(1", "2)",
        "br=()", "br=(1;v)x", "br=1;v", 'sid="a"', 'sid="a', 'b"', 'sid="a\\"', 'sid="\\\\"', 'sid=""', 'sid="',
        "sid=", "sid=a", f'sid="{"x" * 127}"', f'sid="{"x" * 128}"', f'sid="{"x" * 129}"', 'sid="\u00a0"',
        'sid="\x7f"', 'sid="\n"', 'sid="\u00e9"', 'sid="a"b"', 'sid="a=b"', 'nor=("a" "b")', 'nor=("a', '" "b")',
        'ec=("1" 2)', "ec=27", "ot=v", "ot=zz", "e=t", "com.x-y=5", "com.x-y", "=", "", " ", "v=2", "pr=1.0", "pr=1",
        "d=0x1", "ts=1790000000000", "url=" + '"' + "u" * 200 + '"', "\ud800", 'cen="a;b"', 'cid="a";p="b"',
    ]
)  # fmt: skip
SEPARATORS = st.sampled_from([",", ",", ",", ", ", ",,", ";", " ", "\t,", ""])
ODD_TEXTS = st.lists(st.tuples(PIECES, SEPARATORS), max_size=8).map(lambda parts: "".join(map("".join, parts)))
PUNCTUATION = st.text(alphabet='abelvsid=(),;"\\ ?019.-\n\t', max_size=40)


@given(st.lists(ODD_TEXTS | PUNCTUATION | DICTIONARIES.map(written), max_size=3))
def test_the_short_cut_reads_what_reading_closely_does(texts: list[str]) -> None:
    for _ in range(2):  # members that are known by then, too
        cmcd = read(texts)
        assert (typed(cmcd.values), list(cmcd.malformed)) == closely(texts)


def test_usual_texts_take_the_short_cut() -> None:
    for text, _ in V1_EXAMPLES:
        assert module._read_plainly(text, {}), text
    assert not module._read_plainly("bl=1,bl=2", {})
    assert not module._read_plainly("a=1," * MAX_LENGTH, {})


def test_what_is_known_is_bounded() -> None:
    for number in range(module._KNOWN_MOST * 2):
        read([f"com.x-y={number}.5", f'com.x-z="{"x" * module._KNOWN_LENGTH}{number}"'])
    assert len(module._known) <= module._KNOWN_MOST
    assert max(map(len, module._known)) <= module._KNOWN_LENGTH


@pytest.mark.parametrize(
    "unit",
    ['\\"', 'y=\\",', 'a=(\\",', 'a=("x",', 'a=(",b=("', 'a=";', ',a="\x00', "a=(", ";a=1", "aaa ", '"",', '"'],
)
def test_no_text_takes_longer_than_in_proportion_to_its_length(unit: str) -> None:
    def cpu_s(length: int) -> float:
        text = ("x=" + unit * length)[:length]
        taken = []
        for _ in range(3):
            began = time.process_time()
            read([text])
            taken.append(time.process_time() - began)
        return min(taken)

    assert cpu_s(MAX_LENGTH) < 8 * cpu_s(MAX_LENGTH // 4) + 0.002
