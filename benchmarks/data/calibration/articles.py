"""Invented texts about somebody or something: lives, products, news, companies, exhibits, places.

Each template makes one text of a row of its table; fields of a row stand between bars.
"""

from __future__ import annotations

import random

from calibration.draws import CITIES, WEEKDAYS, Written, drawn_day, drawn_name, some_of


def biography(rng: random.Random, row: list[str]) -> Written:
    """A life: profession, works and honours."""
    profession, work, award = row
    name, (home, school, last) = drawn_name(rng), rng.sample(CITIES, 3)
    family, born = name.split(" ", 1)[1], rng.randint(1861, 1974)
    sentences = [
        f"{name} (born {drawn_day(rng)} {born} in {home}) was {profession}, best known for {work}.",
        *some_of(
            rng,
            4,
            f"The {rng.choice(['third', 'youngest', 'elder'])} child of a {rng.choice(['baker', 'clerk', 'midwife'])} "
            f"and a {rng.choice(['tailor', 'teacher', 'sailor'])}, {family} grew up near the harbour.",
            f"{family} studied in {school} from {born + 18} to {born + 22} under {drawn_name(rng)}.",
            f"The years after {born + 30} were spent in {last}, where most of the work was done.",
            f"In {born + 41} {family} was given {award}.",
            f"{family} married {drawn_name(rng)} in {born + 27}; they had {rng.randint(2, 5)} children.",
            f"A street in {school} has borne the name since {born + 90}.",
        ),
    ]
    questions = [
        f"Where was {name} born?",
        f"What was {name} famous for?",
        f"Who was {name}?",
        f"In what year was {name} born?",
        f"{name} biography",
    ]
    return sentences, questions


BIOGRAPHIES = """
a botanist|her catalogue of alpine mosses|the Linden Medal
a violin maker|instruments with an unusually dark tone|the Guild Prize
an astronomer|measuring the orbits of double stars|an honorary doctorate
a football coach|winning the league three times in a row|the city's golden key
a novelist|a trilogy about a family of salt traders|the Harbour Prize for fiction
an engineer|the first cable bridge over the strait|the Order of Merit
a surgeon|a safer way to set broken hips|the Royal Society's silver medal
an economist|a theory of seasonal prices|a chair at the university
a painter|large canvases of railway stations at night|the Biennale's second prize
a translator|bringing Persian poetry to a wide audience|the Bridge Award
"""


def product(rng: random.Random, row: list[str]) -> Written:
    """A product with its price and measures."""
    name, kind, feature, part, weight = row
    price, years = rng.randint(19, 900), rng.choice([2, 3, 5])
    sentences = [
        f"The {name} is {kind} with {feature}.",
        f"It weighs {weight} and comes in a box of {rng.randint(12, 60)} × {rng.randint(10, 45)} × "
        f"{rng.randint(4, 40)} cm, together with {part} and a quick start guide.",
        f"The recommended price is €{price}.95 including tax.",
        *some_of(
            rng,
            2,
            f"Colours: {', '.join(rng.sample(['black', 'sand', 'moss green', 'white', 'brick red', 'navy'], 3))}.",
            f"The manufacturer gives a {years}-year warranty and keeps spare parts for {years + 5} years.",
            f"Do not use it at temperatures above {rng.randint(35, 60)} °C, and clean it only with a damp cloth.",
            f"About {rng.randint(15, 80)} percent of the material is recycled; assembled in {rng.choice(CITIES)}.",
        ),
        f"Order number {rng.choice('ABKMTX')}{rng.randint(1000, 9999)}-{rng.randint(10, 99)}.",
    ]
    questions = [
        f"How much does the {name} weigh?",
        f"How much is the {name}?",
        f"What is the order number of the {name}?",
        f"I am looking for {kind} with {feature}.",
        f"What comes with the {name}?",
        f"{name} price",
    ]
    return sentences, questions


PRODUCTS = """
Brisa 40|a quiet desk fan|a timer and three speeds|a remote control|2.4 kg
Kestrel X2|a folding bicycle|hydraulic disc brakes|a repair kit|11.8 kg
AquaPure Mini|a water filter for the kitchen tap|a display of the filter's age|two cartridges|640 g
Northlight S|a bedside lamp|a wireless charger in its base|a spare bulb|1.1 kg
Tundra 65|a hiking backpack|a ventilated back and a rain cover|a bottle holder|1,950 g
Corvo Press|an espresso machine|a steel boiler|a milk jug|9.3 kg
PocketScan 3|a handheld document scanner|a battery for 400 pages|a memory card|310 g
Hearth Duo|an induction hob|two zones that can be joined|a scraper|8.7 kg
ViolaBuds|a pair of wireless earphones|active noise reduction|ear tips in four sizes|46 g
Terrano Pro|a cordless drill|a brushless motor and 21 torque settings|a set of bits|1.6 kg
"""


def news(rng: random.Random, row: list[str]) -> Written:
    """A short piece of news from a city."""
    event, cause, effect = row
    city, speaker = rng.choice(CITIES), drawn_name(rng)
    sentences = [
        f"{city.upper()}, {drawn_day(rng)} – {event[0].upper() + event[1:]} because of {cause}, the authorities said "
        f"on {rng.choice(WEEKDAYS)}.",
        f"As a result, {effect}.",
        *some_of(
            rng,
            2,
            f'"We had not expected this, but we were prepared," said {speaker}, a spokesperson for the city.',
            f"About {rng.randint(3, 80) * 100} people were affected, among them {rng.randint(12, 90)} schoolchildren.",
            f"The damage is put at {rng.randint(2, 40)} million; insurers will pay for about a third of it.",
            f"It was the {rng.choice(['first', 'second', 'fourth'])} time since {rng.randint(1954, 2016)}.",
        ),
        f"A decision on what comes next is due before {drawn_day(rng)}.",
    ]
    questions = [
        f"What happened in {city}?",
        f"Why was it that {event}?",
        f"What were the effects of {cause} in {city}?",
        f"news {city} {cause}",
    ]
    return sentences, questions


NEWS = """
the harbour was closed|a storm with gusts of 130 kilometres an hour|ferries were sent to other ports
the tram network stood still|a failure of the signal computer|commuters had to walk or share taxis
the museum reopened early|the quick end of its renovation|entry is free for the whole weekend
a bridge was shut to lorries|cracks in two of its piers|deliveries take forty minutes longer
the water had to be boiled|bacteria found in a reservoir|shops sold out of bottled water
the marathon was moved to autumn|a heat wave|runners can ask for their money back
a school was evacuated|a smell of gas in the cellar|lessons were held in a park
bread prices went up|a poor harvest after the dry spring|bakers now sell smaller loaves
the airport cancelled sixty flights|a strike of the ground staff|hotels put up camp beds
the old cinema was saved|a collection among its neighbours|films will be shown again from spring
"""


def company(rng: random.Random, row: list[str]) -> Written:
    """A company and how it came about."""
    name, business, turn = row
    founder, city, founded = drawn_name(rng), rng.choice(CITIES), rng.randint(1872, 1990)
    sentences = [
        f"{name} is a company from {city} that {business}.",
        f"It was founded in {founded} by {founder} with {rng.randint(2, 14)} employees; today it has "
        f"{rng.randint(40, 9000):,}.",
        f"In {founded + rng.randint(6, 12)} {turn}.",
        *some_of(
            rng,
            2,
            f"Revenue was {rng.randint(3, 900)} million in the last financial year, {rng.randint(1, 19)} percent more "
            "than the year before.",
            f"About {rng.randint(20, 90)} percent of what it makes is exported, mostly to {rng.choice(CITIES)} and "
            f"{rng.choice(CITIES)}.",
            f"From {founded + 13} to {founded + 31} the firm was led by {drawn_name(rng)}.",
            f"Its head office stands at {rng.randint(2, 180)} Quay Street.",
        ),
    ]
    questions = [
        f"Who founded {name}?",
        f"What does {name} do?",
        f"In which city is {name} based?",
        f"Which company {business}?",
        f"When was {name} founded?",
    ]
    return sentences, questions


COMPANIES = """
Halden & Voss|builds lifts for mines|a fire destroyed the first factory
Luminara Foods|dries fruit for breakfast cereals|the owners sold a third of it to their workers
Pangolin Robotics|makes grippers for warehouse robots|it opened a laboratory for soft materials
Seabright Textiles|weaves sailcloth from recycled nylon|it won the contract for the national team
Castor Instruments|produces thermometers for hospitals|it gave up mercury, long before it had to
Orchard Mutual|insures small farms against hail|its customers voted against a merger
Redwing Couriers|delivers parcels by cargo bicycle|it bought its only rival
Vantage Optics|grinds lenses for telescopes|an order from an observatory saved it
Monsoon Software|writes timetables for bus operators|it put its source code under a free licence
Ferrum Kitchens|casts iron pots|it moved from the valley to the coast
"""


def exhibit(rng: random.Random, row: list[str]) -> Written:
    """A piece of a museum's inventory."""
    item, material, scene, purpose = row
    city, year = rng.choice(CITIES), rng.randint(1420, 1890)
    number = f"{rng.randint(1880, 1999)}.{rng.randint(1, 400)}"
    sentences = [
        f"Inventory {number}: {item} of {material}, {city}, about {year}.",
        f"Height {rng.randint(8, 140)} cm, width {rng.randint(6, 90)} cm.",
        f"It shows {scene} and served {purpose}.",
        *some_of(
            rng,
            2,
            f"Given by {drawn_name(rng)} in {rng.randint(1900, 1990)}.",
            f"A crack on the left side was repaired in {rng.randint(1950, 2015)} by {drawn_name(rng)}.",
            f"A similar piece was sold at auction for £{rng.randint(3, 80)},{rng.randint(100, 999)}.",
            "The maker's mark on the underside has not been identified.",
        ),
        f"On display in room {rng.randint(2, 38)}; exposed to {rng.choice([50, 80, 150])} lux at the most.",
    ]
    questions = [
        f"What is {item} of {material} from {city} for?",
        f"What can be seen on inventory number {number}?",
        f"In which room is {item} that shows {scene}?",
        f"{material} {city} {year}",
    ]
    return sentences, questions


EXHIBITS = """
a casket|walnut and ivory|a hunt with falcons|to keep letters in
a tapestry|wool and silk|the judgement of a king|to keep a stone hall warm
an astrolabe|brass|the names of 27 stars|to find the hour at night
a tea bowl|glazed stoneware|a crane among reeds|in the tea ceremony
a ship's bell|bronze|an anchor and three initials|to mark the watches
a mask|painted cedar|a raven with a sun in its beak|in winter dances
a prayer book|parchment|the labours of the twelve months|a merchant's wife
a saddle|leather and silver|vines and pomegranates|for processions only
a puppet|lime wood|a general with a moving jaw|a travelling theatre
a wall clock|iron and oak|the phases of the moon|the guild of weavers
"""


def place(rng: random.Random, row: list[str]) -> Written:
    """A village or town."""
    name, setting, known, sight = row
    people, year = rng.randint(180, 42000), rng.randint(1080, 1790)
    city = rng.choice(CITIES)
    sentences = [
        f"{name} is a {'village' if people < 3000 else 'town'} {setting}, {rng.randint(18, 160)} km from {city}, with "
        f"{people:,} inhabitants.",
        f"It was first mentioned in {year} and is known for {known}.",
        *some_of(
            rng,
            3,
            f"Its market is held every {rng.choice(WEEKDAYS)}.",
            f"The highest point of the parish lies {rng.randint(90, 2400)} m above the sea.",
            f"A fire in {year + rng.randint(60, 200)} left only {rng.randint(6, 40)} houses standing.",
            f"The railway reached it in {rng.randint(1851, 1912)} and was closed in {rng.randint(1955, 1991)}.",
            f"The average temperature is {rng.randint(-9, 3)} °C in January and {rng.randint(14, 31)} °C in July.",
        ),
        f"Visitors come to see {sight}.",
    ]
    questions = [
        f"How many people live in {name}?",
        f"What is {name} known for?",
        f"Where is {name}?",
        f"What is there to see in {name}?",
        f"When was {name} first mentioned?",
    ]
    return sentences, questions


PLACES = """
Ostermoor|on the edge of a peat bog|its smoked eel|the crooked tower of its church
Valdemira|in a valley of chestnut trees|a knife fair|the bridge with five arches
Kirrawang|between two salt lakes|opals|a hotel built under the ground
Tarn Ashby|at the foot of the fells|slate roofs|the mill that still grinds oats
Puerto Almena|on a bay with black sand|carnival masks|the houses on stilts
Szentlak|on an island in the river|paprika and geese|the ferry that is pulled by a rope
Nyhamar|at the end of a fjord|wooden boats|the stave church and its dragons
Qasr Umayn|at an oasis|dates and carpets|the mud-brick fortress
Hoshigawa|in the snow country|paper lanterns|the hot springs behind the temple
Mbaluka|on the slope of an old volcano|coffee and honey|the waterfall with two rainbows
"""
