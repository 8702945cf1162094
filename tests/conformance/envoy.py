"""A real Envoy with secrets from SDS only: it originates mTLS to itself and ends it.

usage: envoy.py SOCKET FOLDER stream|delta

A plain listener goes by TLS to a listener that asks for a client's certificate,
and that one to a server here. Every request makes a new TLS connection. While
the other side rotates everything, requests go on; each that fails is counted.
Lines on standard output and input as in workload_api.py.
"""

import http.client
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time

PEER = "spiffe://example.org/web"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Upstream(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = (self.headers.get("x-forwarded-client-cert") or "").encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def sds(name, kind):
    return {
        "name": name,
        "sds_config": {
            "resource_api_version": "V3",
            "api_config_source": {
                "api_type": "DELTA_GRPC" if kind == "delta" else "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "handfast_agent"}}],
            },
        },
    }


def tls(kind, certificate, validation, **more):
    return {
        "common_tls_context": {
            "tls_certificate_sds_secret_configs": [sds(certificate, kind)],
            "combined_validation_context": {
                "default_validation_context": {
                    "match_typed_subject_alt_names": [
                        {"san_type": "URI", "matcher": {"exact": PEER}}
                    ]
                },
                "validation_context_sds_secret_config": sds(validation, kind),
            },
        },
        **more,
    }


def listener(name, port, cluster, **more):
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager"
        ".v3.HttpConnectionManager",
        "stat_prefix": name,
        "route_config": {
            "virtual_hosts": [
                {
                    "name": name,
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster}}],
                }
            ]
        },
        "http_filters": [
            {
                "name": "router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
                },
            }
        ],
        **more.pop("manager", {}),
    }
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    chain = {"filters": [{"name": "http", "typed_config": manager}], **more}
    return {"name": name, "address": address, "filter_chains": [chain]}


def cluster(name, port, **more):
    endpoint = {
        "endpoint": {
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}
        }
    }
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [endpoint]}],
        },
        **more,
    }


def socket_of(name, side, context):
    full = f"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{side}TlsContext"
    return {"name": name, "typed_config": {"@type": full, **context}}


def config(path, kind, ports):
    agent = cluster("handfast_agent", 0)
    agent["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"] = {
        "pipe": {"path": path}
    }
    agent["typed_extension_protocol_options"] = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
    }
    one_request = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "common_http_protocol_options": {"max_requests_per_connection": 1},
            "explicit_http_config": {"http_protocol_options": {}},
        }
    }
    ends = tls(kind, PEER, "ALL", require_client_certificate=True)
    begins = tls(kind, "default", "spiffe://example.org")
    # The session is made anew each time, with certificates.
    ends["disable_stateless_session_resumption"] = True
    ends["disable_stateful_session_resumption"] = True
    begins["max_session_keys"] = 0
    return {
        "node": {"id": "test", "cluster": "test"},
        "admin": {
            "address": {
                "socket_address": {"address": "127.0.0.1", "port_value": ports["admin"]}
            }
        },
        "static_resources": {
            "listeners": [
                listener("plain", ports["plain"], "by_tls"),
                listener(
                    "tls",
                    ports["tls"],
                    "server",
                    manager={
                        "forward_client_cert_details": "SANITIZE_SET",
                        "set_current_client_cert_details": {"uri": True, "subject": False},
                    },
                    transport_socket=socket_of("tls", "Downstream", ends),
                ),
            ],
            "clusters": [
                agent,
                cluster(
                    "by_tls",
                    ports["tls"],
                    transport_socket=socket_of("tls", "Upstream", begins),
                    typed_extension_protocol_options=one_request,
                ),
                cluster("server", ports["server"]),
            ],
        },
    }


def say(word):
    print(json.dumps(word), flush=True)


class Traffic(threading.Thread):
    def __init__(self, port):
        super().__init__(daemon=True)
        self.port, self.stop = port, threading.Event()
        self.sent, self.failures = 0, []

    def run(self):
        while not self.stop.is_set():
            self.sent += 1
            try:
                answer = get(self.port, "/")
                if f"URI={PEER}" not in answer:
                    self.failures.append(answer)
            except Exception as error:
                self.failures.append(repr(error))


def get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read().decode()
        if response.status != 200:
            raise OSError(f"{response.status}: {body[:300]}")
        return body
    finally:
        connection.close()


def statistics(port):
    wanted = ("update_success", "update_rejected", "ssl.handshake", "ssl.session_reused")
    found = {}
    for line in get(port, "/stats?filter=(ssl|sds)").splitlines():
        name, _, value = line.partition(": ")
        if name.endswith(wanted) and value.isdigit():
            found[name] = int(value)
    return found


def main():
    path, folder, kind = sys.argv[1:]
    ports = {name: free_port() for name in ("admin", "plain", "tls", "server")}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", ports["server"]), Upstream)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    file = os.path.join(folder, "envoy.json")
    with open(file, "w") as out:
        json.dump(config(path, kind, ports), out)
    envoy = os.path.join(os.path.dirname(sys.executable), "envoy")
    with open(os.path.join(folder, "envoy.log"), "w") as log:
        process = subprocess.Popen(
            [envoy, "-c", file, "--use-dynamic-base-id", "--concurrency", "2", "-l", "info"],
            stdout=log,
            stderr=log,
        )
    try:
        until = time.time() + 30
        while True:
            try:
                get(ports["plain"], "/")
                break
            except OSError as error:
                if process.poll() is not None or time.time() > until:
                    with open(os.path.join(folder, "envoy.log")) as log:
                        sys.exit(f"{error}\n{log.read()[-4000:]}")
                time.sleep(0.2)
        traffic = [Traffic(ports["plain"]) for _ in range(2)]
        for thread in traffic:
            thread.start()
        say("running")
        while sys.stdin.readline().strip() == "go on":
            say({"sent": sum(thread.sent for thread in traffic), **statistics(ports["admin"])})
        for thread in traffic:
            thread.stop.set()
            thread.join()
        failures = [failure for thread in traffic for failure in thread.failures]
        say(
            {
                "sent": sum(thread.sent for thread in traffic),
                "failures": failures[:5],
                "failed": len(failures),
                **statistics(ports["admin"]),
            }
        )
    finally:
        process.terminate()
        process.wait()


main()
