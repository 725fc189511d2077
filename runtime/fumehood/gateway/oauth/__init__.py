"""The gateway as an OAuth resource server: whose an access token is, and whether who sends it is whom it was issued to.

`signed` reads and verifies what is signed, `keys` are an issuer's and `fetching` reads them from its URL, `tokens` judges claims
(RFC 9068), `dpop` proofs (RFC 9449), `answers` says what a client is told, and `resource` asks them in order. Nothing here is
imported by a gateway that is configured without it.
"""
