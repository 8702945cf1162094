"""The PyPI package spiffe as a workload, through a rotation.

usage: workload_api.py SOCKET

Says on standard output what it has seen, JSON a line: that all five calls work,
that every kind of client does, then each context as it comes. Ends when a line
comes on standard input.
"""

import json
import sys

import grpc
from spiffe import SpiffeId, TrustDomain, WorkloadApiClient
from spiffe.errors import PySpiffeError

DOMAIN = TrustDomain("example.org")


def say(word):
    print(json.dumps(word), flush=True)


def fingerprint(certificate):
    from cryptography.hazmat.primitives import hashes

    return certificate.fingerprint(hashes.SHA256()).hex()


def all_five_calls(client):
    svids = client.fetch_x509_svids()
    assert [str(svid.spiffe_id) for svid in svids] == [
        "spiffe://example.org/web",
        "spiffe://example.org/api",
    ], svids
    assert len(svids[0].cert_chain) == 2
    bundles = client.fetch_x509_bundles()
    roots = bundles.get_bundle_for_trust_domain(DOMAIN).x509_authorities
    assert len(roots) == 1, roots
    one = client.fetch_jwt_svid(audience={"db"}, subject=SpiffeId("spiffe://example.org/api"))
    assert str(one.spiffe_id) == "spiffe://example.org/api"
    every = client.fetch_jwt_svids(audience={"db"})
    assert len(every) == 2, every
    keys = client.fetch_jwt_bundles().get_bundle_for_trust_domain(DOMAIN)
    assert keys.jwt_authorities, "keys that tokens are verified with"
    validated = client.validate_jwt_svid(token=one.token, audience="db")
    assert str(validated.spiffe_id) == "spiffe://example.org/api"
    for wrong in ("other", ""):
        try:
            client.validate_jwt_svid(token=one.token, audience=wrong)
        except (PySpiffeError, ValueError):
            continue
        sys.exit(f"a token for db was accepted for {wrong!r}")


def every_authority(path):
    """What clients in other languages send as :authority, by the same core."""
    for name, authority in {
        "C++ and Ruby": None,
        "Java": path,
        "Go": "localhost",
        "Envoy": "handfast_agent",
        "odd": "a b%%/\\?#[",
    }.items():
        options = [] if authority is None else [("grpc.default_authority", authority)]
        with grpc.insecure_channel(f"unix://{path}", options=options) as channel:
            call = channel.unary_stream(
                "/SpiffeWorkloadAPI/FetchX509SVID",
                request_serializer=lambda message: message,
                response_deserializer=lambda message: message,
            )
            # Twice on one connection: the second names the authority by its number in a table.
            for _ in range(3):
                stream = call(b"", timeout=5, metadata=[("workload.spiffe.io", "true")])
                assert len(next(stream)) > 1000, name
                stream.cancel()


def watch(client):
    """Tells of every context, across restarts of the agent."""

    def tell(context):
        bundle = context.x509_bundle_set.get_bundle_for_trust_domain(DOMAIN)
        say(
            {
                "leaf": fingerprint(context.default_svid.leaf),
                "roots": sorted(fingerprint(root) for root in bundle.x509_authorities),
            }
        )

    handler = client.stream_x509_contexts(tell, lambda error: say({"error": repr(error)}))
    if not sys.stdin.readline():
        sys.exit("the test has gone away")
    handler.cancel()


def main():
    path = sys.argv[1]
    with WorkloadApiClient(f"unix://{path}") as client:
        all_five_calls(client)
        say("five calls")
        every_authority(path)
        say("every authority")
        watch(client)
    say("done")


main()
