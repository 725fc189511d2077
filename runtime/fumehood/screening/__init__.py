"""What a call's texts are searched for: issued credentials, known secret formats, and characters that nobody sees. Pure.

    formats    known formats of secrets, by a kept library's patterns, in time linear in the text
    spellings  the ways in which one secret can be written
    known      the secrets that this process knows itself, found exactly
    search     where they are in some bytes, and those bytes without them
    values     the same for JSON values: redacted, they keep their structure
    flowing    the same for a stream that is passed on as it comes
    hidden     characters that a reader does not see and a model reads

Invariants: a finding names its rule and its place and never what was found; what is removed is removed whole and leaves a text that is
as valid as it was (JSON stays JSON); time is linear in the text whatever a stranger wrote in it.
"""
