"""From run records to tables, sentences and figures: everything a page of the book or a terminal shows.

`tables` speaks of single runs and of the study, `published` and `scoreboard` of the papers' numbers, `figures` draws on
`svg` with `labels`; `plane` and `gallery` draw networks at work; `schema` explains the record, `readme` the README.
"""
