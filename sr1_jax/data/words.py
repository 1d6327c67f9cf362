"""Word lists of the fictional world: parts of invented names, and closed answer sets."""

HEADS = (
    "Ba Be Bi Bo Bra Bre Cal Cor Da De Do Dra El Fa Fen Fi Ga Gel Go Gra Ha Hel Il Ja Jo Ka Kel "
    "Ki Ko La Le Lor Ma Mel Mi Mor Na Ne No Or Pa Pel Po Qua Ra Re Ro Sa Sel Si Sor Ta Tel Ti "
    "To Tra Ul Va Vel Vi Vor Wen Wi Xa Ya Yel Za Zel"
).split()
TAILS = (
    "ban bek bor dan del din dor fan fel gan gor lan las len lin lon lor mak man mer mir mon nak "
    "nar nel nik nor nov rak ran rek rin ris rok ros san sen sik sol tan ten tis tor vak van ven "
    "vik vin vor zan zen zik zor"
).split()
COMPANY_KINDS = "Foods Labs Lines Mills Motors Works".split()
TITLE_ADJECTIVES = (
    "Amber Ancient Broken Burning Distant Empty Frozen Gentle Golden Hidden Hollow Iron Last "
    "Lonely Lost Marble Painted Quiet Restless Scarlet Secret Shining Silent Silver Sleeping "
    "Stolen Velvet Wandering Western Winter"
).split()
TITLE_NOUNS = (
    "Bell Bridge Castle Crown Dream Empire Feather Forest Garden Harbor House Island Journey "
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
