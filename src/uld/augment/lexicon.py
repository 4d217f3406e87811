"""Word lists of the rules, in our own words: what may stand for what, and what stands against it.

A small English vocabulary on purpose: a word is listed only where the swap reads well in nearly every sentence.
"""

import re


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
_COUNT = _words("""two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen""")
_TENS = _words("twenty thirty forty fifty sixty seventy eighty ninety")
_UNITS = {"one": 1} | {word: value for value, word in enumerate(_COUNT[:8], 2)}
_ORDINALS = _words("""second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth
    fifteenth sixteenth seventeenth eighteenth nineteenth""")
NUMBER_WORDS = {word: str(value) for value, word in enumerate(_COUNT, 2)}
NUMBER_WORDS |= {word: str(10 * value) for value, word in enumerate(_TENS, 2)}
NUMBER_WORDS |= {f"{ten}-{unit}": str(10 * n + one) for n, ten in enumerate(_TENS, 2) for unit, one in _UNITS.items()}
NUMBER_WORDS |= {
    word + ending: value
    for word, value in (("hundred", "100"), ("thousand", "1000"), ("million", "1000000"), ("billion", "1000000000"))
    for ending in ("", "s")
}
NUMBER_WORDS |= {word: f"{value}th" for value, word in enumerate(_ORDINALS, 2)}
NUMBER_WORDS |= {ten[:-1] + "ieth": f"{10 * n}th" for n, ten in enumerate(_TENS, 2)}
NUMBER_WORDS |= {
    f"{ten}-{unit}": f"{10 * n + one}th"
    for n, ten in enumerate(_TENS, 2)
    for one, unit in enumerate(("first", *_ORDINALS[:8]), 1)
}
"""Number words in figures. ``one`` and ``first`` are missing: they say other things as often as a number."""
NO_NUMBERS = frozenset(("second-hand", "second-rate", "two-faced"))
"""Compounds that count nothing."""

COMMON = frozenset(
    _words("""
    a an the this that these those there here it its it's he she they we you i his her their our your my him them us me
    who whom whose what which when where why how whether if then than so as at by for from in into of off on onto over
    under up down out about after before between during through throughout with within without against among around
    behind below beside besides beyond despite except inside near outside past per since to toward towards until upon
    and or but nor yet both either neither not no yes indeed absolutely certainly is are was were be been being am do
    does did done has have had having can could may might must shall should will would all any each every few many more
    most much several some such other another one ones only own same also always never often once again ever just too
    very please tell could let name state although though while because unless whereas however moreover furthermore
    additionally meanwhile instead therefore thus hence apart according given based due regarding considering growing
    being born living working writing winning having drawing taking using making coming going while two three four five
    born first second third last next early late later today now currently recently since similarly author writer
    what's there's that's he's she's let's isn't doesn't didn't i'm i've
    """)
)
"""Words that are no names however they are written."""
FUNCTION_WORDS = (
    COMMON
    - NUMBER_WORDS.keys()
    - set(
        _words("""
        before after during until since over under up down inside outside behind beyond against near early late first
        last next always often never every few many most several both neither
        """)
    )
)
"""Those of them that make no difference to what is said; ``before`` and ``two`` can be all that tells one answer from
another."""

_SYNONYMS = """
full name > complete name
the author > the writer
an author > a writer
author of > writer of
famous > well-known
well-known > famous
renowned > celebrated
prestigious > highly regarded
acclaimed > celebrated
notable > noteworthy
significant > important
significantly > considerably
primarily > mainly
predominantly > mostly
mainly > chiefly
often > frequently
frequently > often
usually > generally
typically > usually
numerous > many
various > different
several > a number of
profession > occupation
professions > occupations
occupation > profession
occupations > professions
demonstrates > shows
highlights > underlines
emphasizes > stresses
explores > examines
exploring > examining
depicts > portrays
portrays > depicts
reflects > mirrors
was influenced > was shaped
has influenced > has shaped
influenced by > shaped by
impact on > effect on
unique > distinctive
distinctive > characteristic
theme > topic
themes > topics
began > started
begins > starts
started > began
in addition > besides
additionally > in addition
furthermore > moreover
moreover > furthermore
however > nevertheless
therefore > for this reason
due to > because of
because of > owing to
in order to > so as to
deeply > profoundly
profoundly > deeply
profound > deep
greatly > strongly
known for > noted for
recognized for > known for
acclaim > recognition
recognition > acclaim
upbringing > childhood
narratives > stories
stories > tales
complex > intricate
intricate > complex
essential > crucial
crucial > essential
important > significant
perspective > point of view
perspectives > points of view
understanding of > grasp of
diverse > varied
allowing > enabling
contributed to > played a part in
brought up in > raised in
born and raised > born and brought up
lives in > resides in
lived in > resided in
resides in > lives in
worked as > was employed as
passion for > enthusiasm for
written by > authored by
authored by > written by
penned by > written by
has won > has received
has earned > has gained
currently > at present
recently > lately
particularly > especially
especially > particularly
largely > mostly
although > even though
despite > in spite of
in addition to > besides
as well as > along with
approximately > about
at large > at large
by and large > by and large
in large part > in large part
more often than not > more often than not
theme park > theme park
childhood friend > childhood friend
large > big
quickly > rapidly
rapidly > quickly
difficult > hard
challenges > difficulties
entire > whole
entirely > completely
completely > entirely
critics > reviewers
worldwide > around the world
globally > worldwide
physician > doctor
require > need
requires > needs
provides > offers
creating > producing
showcases > shows
showcasing > showing
embodies > represents
pursue > follow
aims to > seeks to
strives to > tries to
fascination with > strong interest in
dedication to > commitment to
commitment to > dedication to
childhood > early years
""".strip()

SYNONYMS: dict[str, str] = {
    word: other for word, _, other in (line.partition(" > ") for line in _SYNONYMS.splitlines())
}
"""Words and what may stand in their place; a fixed phrase, whose words mean nothing alone, is listed as its own."""

_OPPOSITES = """
father mother
fathers mothers
brother sister
brothers sisters
son daughter
husband wife
uncle aunt
male female
man woman
boy girl
always never
often seldom
early late
first last
increased decreased
increasing decreasing
enriched impoverished
positive negative
positively negatively
praised criticized
best worst
success failure
successful unsuccessful
modern ancient
contemporary medieval
complex simple
urban rural
optimistic pessimistic
serious humorous
large small
long short
rich poor
north south
east west
northern southern
eastern western
summer winter
internationally locally
worldwide locally
fiction non-fiction
independent dependent
strengths weaknesses
love hatred
loyalty betrayal
war peace
joy grief
courage cowardice
tradition progress
similarities differences
accepted rejected
widely barely
popular obscure
inside outside
encouraged discouraged
supportive hostile
""".strip()

OPPOSITES: dict[str, str] = {}
"""Words and their opposites, both ways."""
for _line in _OPPOSITES.splitlines():
    _one, _two = _line.split()
    OPPOSITES.setdefault(_one, _two)
    OPPOSITES.setdefault(_two, _one)

_KINDS = """
nationality: American British French German Italian Spanish Portuguese Dutch Swedish Norwegian
    Danish Finnish Polish Czech Hungarian Romanian Greek Turkish Russian Ukrainian Egyptian Moroccan
    Nigerian Kenyan Ethiopian Iranian Iraqi Israeli Lebanese Syrian Indian Pakistani Bangladeshi
    Thai Vietnamese Chinese Japanese Korean Taiwanese Indonesian Filipino Australian Canadian
    Mexican Brazilian Argentinian Chilean Peruvian Colombian Cuban Irish Scottish Welsh Austrian
    Swiss Belgian
country: America Britain England Scotland Ireland France Germany Italy Spain Portugal Sweden Norway
    Denmark Finland Poland Hungary Romania Greece Turkey Russia Ukraine Egypt Morocco Nigeria Kenya
    Ethiopia Iran Iraq Israel Lebanon Syria Kuwait Bahrain India Pakistan Bangladesh Thailand
    Vietnam China Japan Korea Taiwan Indonesia Australia Canada Mexico Brazil Argentina Chile Peru
    Colombia Cuba Austria Switzerland Belgium Azerbaijan Kazakhstan
city: London Paris Berlin Rome Madrid Lisbon Vienna Prague Warsaw Budapest Athens Istanbul Cairo
    Lagos Nairobi Baghdad Tehran Beirut Delhi Mumbai Dhaka Bangkok Hanoi Beijing Shanghai Tokyo
    Osaka Seoul Taipei Jakarta Sydney Melbourne Toronto Montreal Chicago Boston Seattle Houston
    Santiago Lima Havana Dublin Zurich Brussels Baku Astana Manama Oslo Stockholm Helsinki
    Copenhagen Amsterdam
occupation: accountant actor archaeologist architect astronaut astronomer athlete baker banker
    barber bartender beekeeper biologist bookbinder botanist butcher carpenter chef chemist
    chiropractor clerk dancer dentist diplomat doctor electrician engineer farmer filmmaker
    firefighter fisherman florist gardener geologist historian journalist judge lawyer librarian
    locksmith mathematician mechanic midwife musician nurse optician painter paramedic pharmacist
    philosopher photographer physicist pilot plumber policeman psychologist sailor sculptor
    shoemaker sociologist soldier surgeon surveyor tailor teacher translator veterinarian waiter
    weaver zoologist
genre: fantasy mystery romance horror thriller satire biography poetry drama mythology history
    geology architecture medicine sustainability leadership politics cooking travel science religion
    philosophy education sociology psychology
theme: love identity loss ambition faith exile freedom justice revenge memory friendship solitude
    guilt forgiveness jealousy resilience belonging courage displacement perseverance
colour: red blue green yellow black white purple orange brown grey
season: spring summer autumn winter
language: English French German Spanish Italian Portuguese Russian Arabic Hebrew Persian Turkish
    Hindi Bengali Mandarin Japanese Korean
""".strip()

KINDS: dict[str, tuple[str, ...]] = {}
for _entry in re.split(r"\n(?! )", _KINDS):
    _name, _, _items = _entry.partition(": ")
    KINDS[_name] = _words(_items)
"""Words of one kind, each of which can take another's place."""

PERSONS = (
    *("Mara Quillon", "Tobias Ferrand", "Ingrid Solheim", "Peter Vasile", "Amira Haddad", "Lukas Brenner"),
    *("Yuki Morita", "Rosa Calder", "Daniel Okoye", "Priya Sethi", "Elena Marchetti", "Sven Lindqvist"),
)
TITLES = (
    *("The Orchard Ladder", "Letters from the Salt Road", "A Winter of Glass", "The Last Ferry Home"),
    *("Under the Copper Moon", "The Quiet Harbour", "Nine Keys to the Garden", "What the River Kept"),
)
AWARDS = (
    *("Silver Lantern Prize", "Northern Quill Award", "Golden Compass Medal", "Harbour House Prize"),
    *("Blue Heron Award", "Meridian Book Prize", "Candlewick Medal", "Open Page Award"),
)
INSTITUTIONS = (
    *("University of Vienna", "Lisbon Institute of Technology", "University of Melbourne", "Oslo College of Arts"),
    *("University of Toronto", "Prague Academy of Sciences", "Nairobi University", "University of Seville"),
)
PLACES = (
    *("Lisbon, Portugal", "Oslo, Norway", "Nairobi, Kenya", "Lima, Peru", "Hanoi, Vietnam", "Prague, Czech Republic"),
    *(
        "Montreal, Canada",
        "Athens, Greece",
        "Melbourne, Australia",
        "Dublin, Ireland",
        "Cairo, Egypt",
        "Zurich, Switzerland",
    ),
)
AWARD_WORDS = frozenset(_words("award awards prize medal honor honour trophy fellowship"))
INSTITUTION_WORDS = frozenset(
    _words("university college institute school academy faculty hospital museum company press")
)
QUANTIFIED = {"often": "never", "frequently": "rarely", "always": "never", "usually": "never", "sometimes": "never"}
"""Adverbs and what denies them."""
