"""Word lists of the fictional world: parts of invented names, and closed answer sets."""

HEADS = (
    "Ba Bel Bo Bra Cor Da Dra El Fen Ga Gel Go Il Jo Ka Kel La Lor Ma Mel Mi Nor Or Pa Ro Sel Ta "
    "Tor Val Vi Wen Za"
).split()
TAILS = (
    "bek dan del dor fan gan gor las lin lon mak man mir nel nik nor ran rin ros san sik sol ten "
    "tis van vik zar zen"
).split()
TOWN_KINDS = "Bay Bridge Falls Ford Hill Port".split()
COMPANY_KINDS = "Brothers Foods Labs Lines Mills Motors Trust Works".split()
TITLE_ADJECTIVES = (
    "Amber Ancient Broken Burning Distant Empty Frozen Gentle Golden Hidden Hollow Iron Last "
    "Lonely Lost Marble Painted Quiet Restless Scarlet Secret Shining Silent Silver Sleeping "
    "Stolen Velvet Wandering Western Winter"
).split()
TITLE_NOUNS = (
    "Bell Book Castle Crown Dream Empire Feather Forest Garden Harbor House Island Journey "
    "Lantern Letter Mirror Mountain Orchard Palace River Road Sea Shadow Song Star Storm Tower "
    "Valley Window Wolf"
).split()
COUNTRIES = (
    "Andoria Belmark Cordova Drevia Estoria Falland Gavonia Harland Istria Jovania Kestria "
    "Lumeria Morvania Norland Ostavia Pelland"
).split()
PROFESSIONS = (
    "architect astronomer baker biologist carpenter chemist dentist engineer farmer gardener "
    "historian journalist judge lawyer librarian musician painter pilot sailor surgeon tailor "
    "teacher translator weaver"
).split()
INDUSTRIES = (
    "brewing clothing farming fishing forestry furniture glass insurance mining paper printing "
    "shipping steel timber tourism toys"
).split()
GENRES = (
    "adventure biography comedy crime drama fantasy history horror mystery poetry romance satire "
    "tragedy travel war western"
).split()
