"""Parameters that send money elsewhere, take it otherwise, show more, or forge our marks."""

from __future__ import annotations

from tests.attacks.attack import Attack, bill

_ON_CHARGES = {
    "transfer_data[destination]": "acct_1Evil",
    "transfer_data[amount]": "2900",
    "destination": "acct_1Evil",
    "destination[account]": "acct_1Evil",
    "destination[amount]": "2900",
    "on_behalf_of": "acct_1Evil",
    "application_fee": "100",
    "application_fee_amount": "100",
    "transfer_group": "group",
    "source": "tok_visa",
    "source[number]": "4242424242424242",
    "card": "tok_visa",
    "capture": "false",
    "shipping[name]": "x",
    "level3[merchant_reference]": "x",
    "radar_options[session]": "rse_1",
    "expand[]": "customer",
    "expand[0]": "balance_transaction",
    "exchange_rate": "2",
    "trial": "1",
}
_ON_INTENTS = {
    "transfer_data[destination]": "acct_1Evil",
    "on_behalf_of": "acct_1Evil",
    "application_fee_amount": "100",
    "capture_method": "manual",
    "confirmation_method": "manual",
    "mandate": "mandate_1",
    "mandate_data[customer_acceptance][type]": "offline",
    "payment_method_data[type]": "card",
    "payment_method_options[card][moto]": "true",
    "receipt_emails": "x",
    "return_url": "https://evil.example",
    "secret_key_confirmation": "optional",
    "setup_future_usage": "off_session",
    "use_stripe_sdk": "true",
    "amount_details[tip][amount]": "1",
    "expand[]": "latest_charge",
}
_MARKS = """
metadata[keybrake_operation]
metadata[keybrake_attempt]
metadata[keybrake_key]
metadata[keybrake_]
metadata[keybrake_anything]
metadata[KEYBRAKE_operation]
metadata[Keybrake_Key]
metadata[kEyBrAkE_attempt]
metadata[reference]
""".split()
_UNREADABLE_MARKS = ("metadata[keybrake_operation", "metadata[][keybrake_key]", "metadata[a][")
_NOT_MARKS = ("metadata[order]", "metadata[keybrake]", "metadata[my_keybrake_note]")

ATTACKS = (
    *(Attack(family="parameters", name=f"charge with {name}", form=bill(**{name: value}),
             code="parameter_not_allowed") for name, value in _ON_CHARGES.items()),
    *(Attack(family="parameters of intents", name=f"intent with {name}", form=bill(**{name: value}),
             target="/v1/payment_intents", policy="billing-payment-intents",
             code="parameter_not_allowed") for name, value in _ON_INTENTS.items()),
    *(Attack(family="marks", name=name, form=bill(**{name: "forged"}),
             code="parameter_not_allowed") for name in _MARKS),
    *(Attack(family="marks", name=f"encoded {name}", code="parameter_not_allowed",
             body=b"customer={customer}&amount=2900&currency=usd&metadata%5B%6Beybrake_"
             + name.encode() + b"%5D=x") for name in ("operation", "attempt", "key")),
    *(Attack(family="marks", name=name, code="parameter_unknown",
             body=b"customer={customer}&amount=2900&currency=usd&" + name.encode() + b"=x")
      for name in _UNREADABLE_MARKS),
    *(Attack(family="marks", name=f"accepted {name}", form=bill(**{name: "x"}), code=None)
      for name in _NOT_MARKS),
    *(Attack(family="parameters", name=f"missing {name}", form=bill(**{name: None}),
             code="parameter_missing") for name in ("amount", "currency", "customer")),
    Attack(family="parameters", name="accepted wording", code=None,
           form=bill(description="June", statement_descriptor_suffix="J", receipt_email="a@b.ch")),
    Attack(family="parameters of intents", name="accepted neighbour", code=None,
           target="/v1/payment_intents", policy="billing-payment-intents",
           form=bill(payment_method="pm_card_visa", confirm="true", off_session="true")),
)  # fmt: skip
