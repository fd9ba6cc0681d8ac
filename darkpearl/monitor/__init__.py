"""The page at /monitor: what the engine does, what needs a person, and what can be done about it.

Each screen is a stream of itself: one function of the database (86_monitor.sql), one template.
All that is looked at is read again once a second, in one statement for each role, and sent where
it has changed; nothing is read while nobody looks. The page calls functions that everybody else
has too, as the role of its viewer, so it can do no more than the database lets that role do.

    page        what is served under /monitor: the shell, the streams, the dialogs
    screens     what there is to see: a path, a function, a template
    actions     what there is to do: a function, what is asked for, what is said of it
    looks       what is read and drawn once for all viewers
    rendering   templates, and how amounts, times and statuses are shown
"""
