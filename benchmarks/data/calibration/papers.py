"""Invented texts that people write for each other: minutes, recipes, letters, itineraries, reports, tickets.

Each template makes one text of a row of its table; fields of a row stand between bars.
"""

from __future__ import annotations

import random

from calibration.draws import CITIES, MONTHS, WEEKDAYS, Written, drawn_day, drawn_name, some_of


def meeting(rng: random.Random, row: list[str]) -> Written:
    """Minutes of a meeting."""
    group, topic, decision, task = row
    chair, keeper, absent = (drawn_name(rng) for _ in range(3))
    day = f"{rng.choice(WEEKDAYS)}, {drawn_day(rng)}"
    sentences = [
        f"Minutes of the {group}, {day}, {rng.randint(9, 16)}:{rng.choice(['00', '15', '30'])}.",
        f"Present: {chair} (chair), {keeper} (minutes) and {rng.randint(3, 11)} others; apologies from {absent}.",
        f"1. {topic[0].upper() + topic[1:]}: after a long discussion it was decided to {decision}.",
        f"2. {chair.split()[0]} will {task} by {drawn_day(rng)}.",
        *some_of(
            rng,
            2,
            f"3. The budget for the quarter stands at {rng.randint(4, 90)},{rng.randint(100, 999)} euros.",
            f"3. {keeper.split()[0]} reported that {rng.randint(12, 60)} percent of the survey has come back.",
            "Any other business: none.",
            f"The next meeting is in room {rng.randint(101, 420)} in two weeks.",
        ),
    ]
    questions = [
        f"What did the {group} decide about {topic}?",
        f"Who has to {task}?",
        f"Who could not come to the meeting of the {group}?",
        f"minutes {group} {topic}",
    ]
    return sentences, questions


MEETINGS = """
library committee|opening hours|stay open until nine on Thursdays|put up the new signs
release team|the delayed update|ship it without the new editor|write the release notes
parents' council|school lunches|try a second supplier for one term|ask for three offers
allotment society|the broken water pump|repair it once more|collect the deposits
sales department|the trade fair in autumn|take a smaller stand|book the hotel rooms
choir board|the Christmas concert|hold it in the old market hall|order the scores
data protection working group|storage of visitor logs|delete them after thirty days|inform the reception
neighbourhood association|parking in Mill Lane|petition the council for permits|print the leaflets
clinic's infection control group|hand disinfection|refill the dispensers twice a day|train the new staff
editorial board|the summer issue|make water its theme|find two more authors
"""


def recipe(rng: random.Random, row: list[str]) -> Written:
    """A recipe."""
    dish, first, second, spice, method = row
    serves, minutes = rng.choice([2, 4, 6]), rng.choice([20, 25, 35, 50, 75])
    sentences = [
        f"{dish[0].upper() + dish[1:]} (serves {serves}, {minutes} minutes).",
        f"You need {rng.randint(2, 9) * 100} g {first}, {rng.randint(2, 5)} {second}, {rng.randint(2, 4)} tablespoons "
        f"of oil, {spice}, salt and pepper.",
        f"{method} Season to taste.",
        rng.choice(
            [
                f"It keeps for {rng.randint(2, 4)} days in the refrigerator and freezes well.",
                "Serve at once with fresh bread and a green salad.",
                f"If you like it hotter, add a chopped chilli in the last {rng.randint(3, 8)} minutes.",
                "Leftovers taste even better on the next day.",
            ]
        ),
    ]
    questions = [
        f"How do I make {dish}?",
        f"What do I need for {dish}?",
        f"How long does it take to make {dish}?",
        f"What can I cook with {first} and {second}?",
        f"recipe {first} {second}",
    ]
    return sentences, questions


RECIPES = """
lentil soup with lemon|red lentils|carrots|a teaspoon of cumin|\
Fry the carrots, add lentils and a litre of stock, simmer until soft, and stir in lemon juice.
mushroom risotto|risotto rice|shallots|a pinch of saffron|\
Toast the rice with the shallots, then add hot stock one ladle at a time while stirring, and fold in fried mushrooms.
baked aubergines|ripe tomatoes|aubergines|a handful of basil|\
Halve and salt the aubergines, cover them with tomato sauce and bake at 190 °C until they collapse.
potato pancakes|floury potatoes|onions|some grated nutmeg|\
Grate potatoes and onions, squeeze out the water, mix with an egg, and fry small heaps on both sides until golden.
chickpea curry|cooked chickpeas|cloves of garlic|two teaspoons of garam masala|\
Soften the garlic with ginger, add spices and coconut milk, then let the chickpeas cook in it slowly.
fish stew|cod fillet|leeks|a bay leaf|\
Sweat the leeks, pour on white wine and stock, and let the fish poach in the broth for the last six minutes.
spinach pie|fresh spinach|eggs|a bunch of dill|\
Wilt the spinach, mix it with eggs and crumbled feta, wrap it in buttered filo pastry and bake until crisp.
apple crumble|cooking apples|spoons of brown sugar|a stick of cinnamon|\
Stew the apples, rub butter into flour and sugar, scatter it over the fruit and bake until it bubbles.
black bean tacos|black beans|limes|a tablespoon of smoked paprika|\
Mash half of the beans with lime juice, warm the tortillas in a dry pan and fill them with cabbage and salsa.
noodle salad with peanuts|rice noodles|cucumbers|a dash of soy sauce|\
Soak the noodles in boiling water, rinse them cold and toss them with sliced cucumbers and a peanut dressing.
"""


def letter(rng: random.Random, row: list[str]) -> Written:
    """A letter or an e-mail."""
    subject, request, detail = row
    sender, receiver = drawn_name(rng), drawn_name(rng)
    number = f"{rng.randint(10, 99)}-{rng.randint(10000, 99999)}"
    sentences = [
        f"From: {sender}. To: {receiver}. Subject: {subject}.\n\nDear {receiver.split()[0]},",
        f"I am writing about {subject[0].lower() + subject[1:]} (reference {number}). {detail}",
        f"Could you please {request} before {rng.choice(WEEKDAYS)}?",
        f"You can reach me on extension {rng.randint(200, 899)} between {rng.randint(8, 11)} a.m. and "
        f"{rng.randint(2, 6)} p.m.\n\nKind regards,\n{sender}",
    ]
    questions = [
        f"What does {sender} want {receiver.split()[0]} to do?",
        f"What is the reference number of the message about {subject[0].lower() + subject[1:]}?",
        f"Who wrote to {receiver} about {subject[0].lower() + subject[1:]}?",
        f"email from {sender}",
    ]
    return sentences, questions


LETTERS = """
Invoice for the March delivery|send a corrected copy|Two boxes of filters were charged, although only one arrived.
Your application as a lab assistant|name two people who know your work|We liked your samples and would like to go on.
Noise from the building site|tell me when the drilling will end|It starts at six and shakes the glasses in the cupboard.
Lost suitcase on flight 418|check the store room again|It is dark green, with a torn label and a red ribbon.
Changing my appointment|find a later date for me|My daughter has her exam on the day you suggested.
Broken heating on the third floor|send somebody with a new valve|The radiators have been cold since the weekend.
Proofs of chapter seven|mark the changes in blue|The figures have been numbered again from the beginning.
Renting the village hall|confirm the price for two evenings|We expect eighty guests and bring our own chairs.
Access to the shared drive|add our trainee to the group|She started on the first and still works on paper.
Cancelling the magazine|stop the direct debit|I have moved abroad and can no longer receive it.
"""


def journey(rng: random.Random, row: list[str]) -> Written:
    """An itinerary."""
    means, stay, sight = row
    start, stop, end = rng.sample(CITIES, 3)
    hour, traveller = rng.randint(6, 11), drawn_name(rng)
    left = f"{hour:02}:{rng.randint(10, 59)}"
    sentences = [
        f"Itinerary for {traveller}: {start} to {end}, {drawn_day(rng)} {rng.randint(2019, 2027)}.",
        f"{left} depart {start} by {means}, seat {rng.randint(1, 40)}{rng.choice('ABCD')}; "
        f"{hour + 4:02}:{rng.randint(10, 59)} change in {stop}, gate {rng.randint(2, 19)}.",
        f"Arrival in {end} at {hour + 9:02}:{rng.randint(10, 59)}.",
        f"Stay for {rng.randint(2, 9)} nights at {stay}, "
        f"booking code {rng.choice('HJQRW')}{rng.randint(10000, 99999)}.",
        f"Planned for the second day: {sight}.",
        rng.choice(
            [
                "Tickets can be changed free of charge until the evening before.",
                f"Travel insurance is included; the emergency number is +{rng.randint(30, 99)} {rng.randint(100, 999)} "
                f"{rng.randint(1000, 9999)}.",
                f"Luggage is limited to {rng.choice([12, 20, 23])} kg.",
            ]
        ),
    ]
    questions = [
        f"When does {traveller} leave {start}?",
        f"Where does {traveller} change on the way to {end}?",
        f"What is the booking code at {stay}?",
        f"trip {start} to {end}",
    ]
    return sentences, questions


JOURNEYS = """
night train|the Hotel Meridian|a walk through the old quarter with a guide
ferry|a cabin by the lighthouse|the fish market before sunrise
express coach|the Pilgrim's Inn|the glass works and its museum
regional train|a friend's flat on Station Road|a concert in the cathedral
plane|the Blue Courtyard guest house|the botanical garden
high-speed train|the Hotel Cordoba|a meeting with the suppliers
shared taxi|a farm outside the town|picking olives
river boat|the Old Customs House|the clock tower and the salt museum
sleeper bus|the youth hostel at the park|climbing the hill fort
tram and train|the conference hotel|giving a talk at four o'clock
"""


def measurement(rng: random.Random, row: list[str]) -> Written:
    """A laboratory's report."""
    subject, quantity, unit, low, high, finding = row
    values = [round(rng.uniform(float(low), float(high)), 1) for _ in range(4)]
    place = rng.choice(CITIES)
    sentences = [
        f"Report {rng.randint(2012, 2026)}/{rng.randint(100, 999)}: {quantity} of {subject} near {place}.",
        f"Samples were taken on {drawn_day(rng)} at four sites and gave {values[0]}, {values[1]}, {values[2]} and "
        f"{values[3]} {unit}, a mean of {sum(values) / 4:.2f} {unit}.",
        f"The instrument was calibrated on the same morning; its error is below {rng.randint(1, 5)} percent.",
        f"{finding} Further samples are planned for {rng.choice(MONTHS)}.",
        f"Analysis by {drawn_name(rng)}, checked by {drawn_name(rng)}.",
    ]
    questions = [
        f"What was the mean {quantity} of {subject} near {place}?",
        f"How high is the {quantity} of {subject}?",
        f"Who analysed {subject} near {place}?",
        f"{quantity} {subject} measurements {place}",
    ]
    return sentences, questions


MEASUREMENTS = """
river water|nitrate content|mg/l|2|48|The highest value comes from below the sewage plant.
garden soil|acidity|pH|4.8|7.9|Lime should be added where potatoes are to grow.
mountain air|ozone concentration|µg/m³|40|160|The limit was passed on two afternoons.
wild honey|water content|percent|15|21|One sample may ferment and must not be sold.
concrete cores|compressive strength|MPa|21|55|The northern wall is weaker than its drawings say.
sea ice|thickness|cm|30|190|The ice was thinner than in any of the last ten winters.
blood plasma|potassium level|mmol/l|3.4|5.3|No patient needed treatment.
olive oil|share of free fatty acids|percent|0.2|2.4|Two of the bottles were labelled wrongly.
bat colonies|wing length|mm|31|44|The animals belong to at least two species.
drinking water|hardness|°dH|3|24|Coffee machines in the district should be descaled monthly.
"""


def ticket(rng: random.Random, row: list[str]) -> Written:
    """A ticket about a problem and its solution."""
    problem, cause, remedy = row
    reporter, version = drawn_name(rng), f"{rng.randint(1, 9)}.{rng.randint(0, 20)}.{rng.randint(0, 9)}"
    number = rng.randint(1200, 98000)
    sentences = [
        f"Ticket #{number} (opened {rng.randint(2015, 2026)}-{rng.randint(10, 12)}-{rng.randint(10, 28)} by "
        f"{reporter}, version {version}): {problem}.",
        f"It happens {rng.choice(['every time', 'about once a day', 'only after a restart'])} on "
        f"{rng.randint(2, 60)} machines.",
        f"The cause turned out to be {cause}.",
        f"Solution: {remedy}; fixed in {version[:-1]}{int(version[-1]) + 1}.",
        rng.choice(
            [
                f"Closed after {rng.randint(2, 40)} days.",
                f"Workaround until then: start with the option --no-cache and {rng.randint(2, 16)} GB of memory.",
                f"{drawn_name(rng)} confirmed that the problem has not come back.",
            ]
        ),
    ]
    questions = [
        f"Why is it that {problem}?",
        f"How do I fix it when {problem}?",
        f"What was the cause of ticket #{number}?",
        f"{problem}",
    ]
    return sentences, questions


TICKETS = """
the printer puts out blank pages|a driver that mixes up A4 and letter paper|\
set the paper size in the queue, not in the dialog
search finds nothing in long documents|an index that stops after 65,536 words|\
rebuild the index with wider positions
the login page loops for ever|a cookie with the wrong domain|\
delete the cookie and set the domain to the host's full name
backups fail at midnight|a clock change that lets two jobs start together|\
take a lock before the first file is written
photos appear upside down|an orientation tag that is ignored|\
rotate the picture when it is imported
the battery is empty after two hours|a sensor that is asked a hundred times a second|\
ask once a second, and not while the lid is shut
names with accents are garbled in exports|text that is encoded twice|\
write the file as UTF-8 exactly once
the map shows no streets|an expired key for the tile server|\
renew the key and warn thirty days ahead
video calls have no sound|a headset that is chosen although it is unplugged|\
fall back to the built-in microphone
totals are wrong by one cent|adding rounded values|\
round only after adding
"""
