"""Server reflection and health, as generic tools ask for them.

usage: reflection.py SOCKET
"""

import sys

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

with grpc.insecure_channel(f"unix://{sys.argv[1]}") as channel:
    database = ProtoReflectionDescriptorDatabase(channel)
    services = set(database.get_services())
    wanted = {
        "SpiffeWorkloadAPI",
        "envoy.service.secret.v3.SecretDiscoveryService",
        "grpc.health.v1.Health",
    }
    assert wanted <= services, services
    service = DescriptorPool(database).FindServiceByName("SpiffeWorkloadAPI")
    methods = {method.name for method in service.methods}
    assert methods == {
        "FetchX509SVID",
        "FetchX509Bundles",
        "FetchJWTSVID",
        "FetchJWTBundles",
        "ValidateJWTSVID",
    }, methods
    svid = service.methods_by_name["FetchX509SVID"].output_type.fields_by_name["svids"]
    fields = {field.name: field.number for field in svid.message_type.fields}
    assert fields == {
        "spiffe_id": 1,
        "x509_svid": 2,
        "x509_svid_key": 3,
        "bundle": 4,
        "hint": 5,
    }, fields
    for name in ("", "SpiffeWorkloadAPI"):
        request = health_pb2.HealthCheckRequest(service=name)
        status = health_pb2_grpc.HealthStub(channel).Check(request, timeout=5).status
        assert status == health_pb2.HealthCheckResponse.SERVING, (name, status)
print("done")
