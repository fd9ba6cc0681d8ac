"""The laws of the schema in words: what PostgreSQL tells by the name of a constraint alone.

docs/sql.md lists them for who reads errors in psql.
"""

_ID_IS_TAKEN = (
    "The id is taken: an order's, a refund's or a saga's id is one in the whole database.",
    "Look up what you have sent already, or give a new one a new id.",
)
_SHORT = "{} has 1 to {} characters, one of them visible at least."
_VISIBLE = (
    "{} has visible characters and single spaces between them: no tab or line break, nothing of"
    " zero width, no space at its ends."
)
_NFC = ("{} is in Unicode's normal form C (NFC).", "Normalise the text before it is sent.")
LAWS: dict[str, tuple[str, str]] = {
    "orders_pkey": _ID_IS_TAKEN,
    "refunds_pkey": _ID_IS_TAKEN,
    "sagas_id_is_one_in_the_database": _ID_IS_TAKEN,
    "amount_is_a_sane_sum": (
        "An amount is 0 or more and below 1000000000000, with four decimals at most.",
        "",
    ),
    "currency_is_iso_4217": ("A currency is three capital letters, such as USD (ISO 4217).", ""),
    "note_is_bounded": ("A note, a reason and the like have 2000 characters at most.", ""),
    "stock_level_is_sane": ("A stock level is a whole number from 0 to 1000000000.", ""),
    "products_sku_is_unique": (
        "There is a product with this SKU already.",
        "Change that one, or give this one another SKU.",
    ),
    "products_sku_is_short_and_not_blank": (_SHORT.format("A SKU", 100), ""),
    "products_sku_is_visible_throughout": (_VISIBLE.format("A SKU"), ""),
    "products_sku_is_normalized_nfc": (_NFC[0].format("A SKU"), _NFC[1]),
    "products_name_is_short_and_not_blank": (_SHORT.format("A product's name", 255), ""),
    "products_name_is_normalized_nfc": (_NFC[0].format("A product's name"), _NFC[1]),
    "products_description_is_bounded": ("A description has 10000 characters at most.", ""),
    "products_price_has_the_decimals_of_its_currency": (
        "A price has the decimals of its currency: none for JPY, three for KWD, two for most.",
        "Round it to what can be paid.",
    ),
    "warehouses_code_is_unique": (
        "There is a warehouse with this code already.",
        "Change that one, or give this one another code.",
    ),
    "warehouses_code_is_short_and_not_blank": (_SHORT.format("A code", 50), ""),
    "warehouses_code_is_visible_throughout": (_VISIBLE.format("A code"), ""),
    "warehouses_code_is_normalized_nfc": (_NFC[0].format("A code"), _NFC[1]),
    "warehouses_name_is_short_and_not_blank": (_SHORT.format("A warehouse's name", 255), ""),
    "warehouses_name_is_normalized_nfc": (_NFC[0].format("A warehouse's name"), _NFC[1]),
    "warehouses_address_is_bounded": ("An address has 1000 characters at most.", ""),
    "warehouses_priority_is_sane": ("A priority is a whole number from 0 to 1000000.", ""),
    "inventory_reserved_within_available": (
        "What is reserved is 0 or more, and no more than what is available.",
        "",
    ),
    "inventory_quantity_is_bounded": ("A shelf holds 1000000000 units at most.", ""),
    "stock_movements_quantity_is_signed_by_type": (
        "A movement is of 1 unit or more; one that adjusts may be of less than 0, never of 0.",
        "",
    ),
    "stock_movements_reference_type_is_bounded": (
        "A reference type has 50 characters at most.",
        "",
    ),
    "adjustment_reasons_pkey": (
        "There is an adjustment reason with this code already.",
        "Use that one, or give this one another code.",
    ),
    "adjustment_reasons_code_is_a_word": (
        "A reason's code is a lower-case letter, then up to 49 letters, digits and underscores.",
        "",
    ),
    "order_items_quantity_is_sane": ("A line is of 1 to 1000000 units.", ""),
    "refunds_give_something_back": ("A refund is of more than 0.", ""),
    "payment_tokens_are_bounded": ("A payment token has 1 to 500 characters.", ""),
    "saga_signals_are_bounded": (
        "An event id has 1 to 255 characters, a payload 65536 bytes at most.",
        "",
    ),
    "idempotency_keys_key_is_bounded": ("An idempotency key has 1 to 255 characters.", ""),
}
"""Constraints that a caller can break, in words, and what to do; docs/sql.md lists them too."""
