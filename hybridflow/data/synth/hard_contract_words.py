"""Names and boilerplate of the contracts of the hard tier. No filler names an agreement, or sets a term of one."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PARTY_FORMS = ("Ltd", "GmbH", "Corporation", "NV", "AB")
LENDER_FORMS = ("Credit Bank", "Merchant Bank", "Capital", "Lending", "Finance House")
"""Unlike the endings of companies and banks in reports, so that no name stands for two."""
MONTHS = _words("January February March April May June July August September October November December")
PLACES = _words(
    "England Scotland Norway Sweden Finland Denmark Portugal Spain Italy Greece Austria Switzerland Ireland Belgium "
    "Poland Luxembourg"
)
COURTS = ("Commercial Court", "High Court", "District Court", "City Court", "Chamber of Commerce Court")

CONTRACT_FILLERS = (
    "Headings are for convenience only and do not affect the reading of a clause.",
    "Words in the singular include the plural, and a reference to a person includes that person's successors.",
    "No failure to exercise a right is a waiver of it, and no waiver counts unless it is made in writing.",
    "If a provision is or becomes void, the others remain in force and the parties shall replace it in good faith.",
    "Counterparts signed on different days form one instrument, and a scanned copy has the force of the paper.",
    "Insurance certificates for sites in {region} were handed over {count} days late, which the parties let pass.",
    "The adviser's file on {topic} lists {count} open points, of which {count2} were settled by telephone.",
    "Each party bears the costs of its own advisers, save for translations, which are shared in equal parts.",
    "The annex on {topic} has {count} pages and was initialled on each of them.",
    "The data room held {staff} documents, and {percent}% of them concerned the {segment} business in {region}.",
    "A party that learns of an event beyond its control shall say so at once and limit the harm as far as it can.",
    "What the parties tell each other about {topic} is confidential and may be shown to auditors and insurers only.",
    "The recitals describe why the parties met, and nobody may found a claim on them alone.",
    "The surveyor found {count} small faults in the plans for {region} and valued them at {percent2}% of the works.",
    "Stamp duties fall on the party that asks for the stamp, unless statute says otherwise.",
    "During the talks demand in {region} {moved}, and the drafts of the {quarter} week were set aside.",
    "The word business day means a day on which offices in {region} are open to the public.",
    "Letters are deemed received on the {quarter} working day after posting, and electronic messages when read.",
    "The parties keep books on {topic} and open them to each other once a year, {count2} people at a time.",
    "Nothing in these papers makes one party the agent, partner or employer of another.",
)
"""Slots as in `hard_words.FILLER_SLOTS`."""
