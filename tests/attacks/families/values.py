"""Values that would be read as another amount, currency, customer or period, or as none."""

from __future__ import annotations

from tests.attacks.attack import Attack, bill

_PERIOD = "metadata[billing_period]"
_AMOUNTS = """
0 -1 -2900 +2900 2900.0 29.00 2,900 2_900 2.9e3 0x0b54 0b1 1e3 NaN inf Infinity 02900
\uff12\uff19\uff10\uff10 \xb2\u2079\u2070\u2070
٢٩٠٠ 1000000000000 99999999999999999999999999 true null [] 2900usd
""".split()
_CURRENCIES = "us usdx usd, u$d 840 xxx btc \uff35\uff33\uff24 u\u017fd usd%00 USd$ -".split()
_CUSTOMERS = """
cus_ cus alice acct_1Evil cus_A1/../cus_B cus-A1 CUS_A1 cus_A1,cus_B1 cus_A1&amount=1 cus_Ä
cus_A1%20 *
""".split()
_PERIODS = """
2026-13 2026-00 2026-6-1 26-06 June 2026-W54 2026-W00 2026-Q5 2026-02-30 2026-06-15/2026-06-01
2026-06/2026-07 0000-01 now \uff12\uff10\uff12\uff16-06 2026\u201006 2026-06; 2026-06%00
1999-12 9999-12-31 *
""".split()
_FAR = "2000-01 2020-01 2031-01 2099 2098-12-31 2019-W23 2031-Q1".split()

ATTACKS = (
    *(Attack(family="amounts", name=ascii(value), form=bill(amount=value),
             code="parameter_invalid") for value in _AMOUNTS),
    Attack(family="amounts", name="empty", form=bill(amount=""), code="parameter_invalid"),
    Attack(family="amounts", name="blank before it", form=bill(amount=" 2900"),
           code="parameter_invalid"),
    Attack(family="amounts", name="line end behind it", form=bill(amount="2900\n"),
           code="parameter_invalid"),
    Attack(family="amounts", name="krona not a hundred", form=bill(amount="101", currency="isk"),
           code="parameter_invalid"),
    Attack(family="amounts", name="dinar not a ten", form=bill(amount="1001", currency="kwd"),
           code="parameter_invalid"),
    *(Attack(family="currencies and customers", name=f"currency {value!a}",
             form=bill(currency=value), code="parameter_invalid") for value in _CURRENCIES),
    *(Attack(family="currencies and customers", name=f"customer {value!a}",
             form=bill(customer=value), code="parameter_invalid") for value in _CUSTOMERS),
    *(Attack(family="periods", name=ascii(value), form=bill(**{_PERIOD: value}),
             code="parameter_invalid") for value in _PERIODS),
    Attack(family="periods", name="empty", form=bill(**{_PERIOD: ""}), code="parameter_invalid"),
    Attack(family="periods", name="another in the description", code="parameter_invalid",
           form=bill(description="Subscription {last_month}")),
    *(Attack(family="periods", name=f"invented {value}", form=bill(**{_PERIOD: value}),
             code="period_out_of_window") for value in _FAR),
    *(Attack(family="periods", name=f"invented in the description {value}",
             form=bill(**{_PERIOD: None}, description=f"Subscription {value}"),
             code="period_out_of_window") for value in ("2031-01", "2001-12")),
    Attack(family="amounts", name="accepted: the largest", form=bill(amount="99999999"), code=None),
    Attack(family="currencies and customers", name="accepted: yen", code=None,
           form=bill(amount="2900", currency="JPY")),
    Attack(family="periods", name="accepted: in words", form=bill(**{_PERIOD: "{month_long}"}),
           code=None),
    Attack(family="periods", name="accepted: last month's", form=bill(**{_PERIOD: "{last_month}"}),
           code=None),
)  # fmt: skip
