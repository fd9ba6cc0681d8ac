"""One Struct for each shape over the wire: rows of the database, and bodies of requests.

A response has the columns of its row under the same names. A request refuses fields that it
doesn't know; in an update, a field that is left out stays as it is.

Amounts of money are numbers in JSON, in their exact decimal text (`999.99`), because that is what
clients of a catalogue send and show; a client whose numbers are floating point may send a string
instead. They are never floats in here. Times carry their offset from UTC.
"""
