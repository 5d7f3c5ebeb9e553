"""Names and sentence patterns of the hard tier. All companies, banks, firms and people are made up."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAME_STEMS = _words(
    "Norvane Caldrix Estrella Halvorsen Pellworth Tamarind Ostrava Brightwater Kestrel Lumenor Marrow Quillon Redfern "
    "Sablewood Tarquin Umbria Velloso Westering Yarrow Zephyrine Ardmore Belcanto Corvina Dunhallow Eastmoor Falkner "
    "Glenrath Highmere Inverloch Juniper Kilbride Larkspur Merrow Northolt Oakhaven Pinewell Ravensby Silverlake"
)
ACTIVITIES = _words("Shipping Mining Energy Foods Logistics Airways Textiles Pharma Telecom Timber Chemicals Rail")
LEGAL_FORMS = ("plc", "S.A.", "AG", "Holdings", "Group")
BANK_FORMS = ("Bank", "Trust", "Bank & Trust", "Savings Bank", "Guaranty")
FIRM_FORMS = ("LLP", "& Partners", "Audit", "Assurance")
FIRST_NAMES = _words("Amara Bruno Celeste Dario Elin Farid Greta Hugo Ines Jonas Katya Leon Mireille Nils Olga Pavel")
SURNAMES = _words(
    "Almquist Barreto Castellane Drozd Eklund Ferreira Grabowski Hartmann Ishida Jankovic Kovalenko Lindgren Moreau "
    "Novotny Oduya Petrosyan Quintero Rasmussen Sorensen Tanaka Ueberroth Valdivia Wojcik Yamamoto Zimmerman"
)
CITIES = _words(
    "Lisbon Oslo Geneva Dublin Vienna Madrid Athens Prague Warsaw Helsinki Milan Zurich Antwerp Bergen Bilbao Cardiff "
    "Gdansk Hamburg Leeds Lyon Malmo Nantes Porto Rotterdam Seville Tallinn Turin Utrecht Valencia Vilnius"
)
CURRENCIES = ("EUR", "USD", "GBP", "CHF", "SEK", "JPY")
LINE_ITEMS = (
    "Revenue",
    "Cost of sales",
    "Staff costs",
    "Depreciation",
    "Marketing costs",
    "Interest expense",
    "Capital expenditure",
)

FILLER_PATTERNS = (
    "Demand in {region} {moved} during the {quarter} quarter, and the {segment} segment took {percent}% "
    "of the order intake.",
    "The committee met {count} times in the year and reviewed the {topic} at all but one of its meetings.",
    "Management does not expect changes to the {topic} to have a material effect on the financial statements.",
    "In {region}, {count} sites were refurbished and {count2} were closed, with no redundancies among permanent staff.",
    "The sensitivity analysis assumes a parallel shift of {basis} basis points; all other variables are held constant.",
    "Lease liabilities are measured at the present value of the remaining payments, discounted at the "
    "incremental rate.",
    "Receivables older than {days} days are reviewed one by one, and an allowance is made where "
    "collection is doubtful.",
    "The {segment} segment {moved}, which management attributes to weather, freight rates and a later "
    "start of the season.",
    "Under the car fleet agreement the group shall keep the vehicles insured and report any damage within {days} days.",
    "A change of {percent}% in the discount rate would not by itself lead to an impairment of goodwill.",
    "The directors considered the {topic} and are satisfied that the going-concern basis remains appropriate.",
    "No single customer in {region} accounted for more than {percent}% of sales in the {segment} segment.",
    "No partner of the joint venture in {region} may assign its rights without the written consent of the others.",
    "Energy use per tonne {moved} for the {quarter} quarter in a row, helped by {count} new furnaces in {region}.",
    "The remuneration policy links {percent}% of the variable pay to the {topic} and the rest to total return.",
    "Any complaint of a supplier that is not settled within {days} days is referred to a panel of {count} members.",
    "Currency exposure in {region} is hedged for up to {days} days ahead, within the limits set by the "
    "treasury policy.",
    "The group employed {staff} people at the end of the year, of whom {percent}% worked in {region}.",
    "Deferred tax assets are recognised to the extent that future taxable profit is probable.",
    "Following the review of the {topic}, {count} recommendations were accepted and {count2} remain under discussion.",
    "The tenant of the old depot in {region} left {days} days early, after {count} years, and the site was sold.",
    "Provisions for restoration are discounted at {percent2}% and reviewed whenever a site in {region} changes use.",
    "The {segment} segment opened {count} branches in {region} and expects them to break even within {days} days.",
    "A covenant limits capital spending in any {quarter} quarter; it was met throughout the year with ample headroom.",
    "Inventories are stated at the lower of cost and net realisable value, and the write-down for the year was small.",
    "The insurer bears losses above a deductible of {percent2}% of the insured sum, provided that notice "
    "was given in time.",
    "Share awards vest after {count2} years if the holder is still employed and the {topic} have been carried out.",
    "Trade with related parties in {region} took place on the terms that apply to unrelated customers.",
)
# fmt: off
FILLER_SLOTS: dict[str, tuple[str, ...]] = {
    "region": (
        "northern Europe", "Iberia", "the Baltic states", "South America", "the Gulf", "East Africa", "Oceania",
        "the Alps",
    ),
    "moved": ("rose", "eased", "held steady", "recovered", "was weaker than planned", "grew faster than expected"),
    "quarter": ("first", "second", "third", "fourth"),
    "segment": ("wholesale", "retail", "industrial", "services", "consumer", "marine"),
    "topic": (
        "safety measures", "pension schemes", "security plans", "supply contracts", "savings measures",
        "climate targets",
    ),
}
# fmt: on
"""Word slots; the number slots are drawn in hard.py."""
