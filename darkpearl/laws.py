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
_ADDRESS = (
    "An address has some of name, company, line1, line2, city, region, postal_code, country and"
    " phone, each a visible text of 255 characters at most; country is two capital letters."
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
    "signed_amount_is_a_sane_sum": (
        "An adjustment is below 1000000000000, above its negative, with four decimals at most.",
        "",
    ),
    "order_adjustments_sign_is_that_of_the_kind": (
        "A discount is of 0 or less; shipping, tax and fees are of 0 or more.",
        "",
    ),
    "order_adjustments_label_is_short_and_not_blank": (_SHORT.format("A label", 255), ""),
    "customer_id_is_visible_throughout": (
        "A customer's id has 1 to 255 visible characters and single spaces between them.",
        "It is the sub of the customer's tokens, to the letter.",
    ),
    "email_address_has_a_name_and_a_host": (
        "An email address has a name, @ and a host, no white space, and 254 characters at most.",
        "",
    ),
    "postal_address_has_its_fields": (
        _ADDRESS,
        "",
    ),
    "metadata_is_a_small_object": (
        "Metadata is an object of 16384 bytes at most.",
        "Keep what is larger elsewhere, and its address here.",
    ),
    "client_action_is_a_small_object": (
        "What a payer has to do is an object of 8192 bytes at most.",
        "",
    ),
    "order_particulars_reference_is_unique": (
        "There is an order with this reference already.",
        "Look it up by its reference, or give this one another.",
    ),
    "order_particulars_reference_is_short": ("A reference has 1 to 100 characters.", ""),
    "order_particulars_reference_is_visible_throughout": (_VISIBLE.format("A reference"), ""),
    "order_particulars_reference_is_normalized_nfc": (_NFC[0].format("A reference"), _NFC[1]),
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
    "shipments_carrier_is_short_and_not_blank": (_SHORT.format("A carrier", 100), ""),
    "shipments_tracking_number_is_short_and_not_blank": (
        _SHORT.format("A tracking number", 100),
        "",
    ),
    "shipments_tracking_url_is_a_web_address": (
        (
            "A tracking address begins with http:// or https:// and has 2000 characters at most,"
            " none of them white space."
        ),
        "",
    ),
    "refunds_give_something_back": ("A refund is of more than 0.", ""),
    "payment_tokens_are_bounded": ("A payment token has 1 to 500 characters.", ""),
    "saga_signals_are_bounded": (
        "An event id has 1 to 255 characters, a payload 65536 bytes at most.",
        "",
    ),
    "webhook_endpoints_url_is_http": (
        (
            "A webhook's URL begins with http:// or https:// and a host, has visible ASCII and 2000"
            " characters at most, no login and no fragment."
        ),
        "Write other characters as %XX, and a host in its ASCII form.",
    ),
    "webhook_endpoints_topics_are_some": (
        "A webhook endpoint has 1 to 50 topics, or null for all of them.",
        "",
    ),
    "idempotency_keys_key_is_bounded": ("An idempotency key has 1 to 255 characters.", ""),
}
"""Constraints that a caller can break, in words, and what to do; docs/sql.md lists them too."""
