//! Generates messages and stubs with protox, a protobuf compiler in Rust, so that no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "envoy/discovery.proto",
        "etcd/kv.proto",
        "etcd/rpc.proto",
        "weft/mesh.proto",
        "weft/identity.proto",
        "weft/registry.proto",
        "weft/admin.proto",
        "weft/dns.proto",
        "weft/federation.proto",
    ];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure()
        // Resources are shared by all their subscribers: bodies are reference-counted, not copied.
        .bytes(".envoy.service.discovery.v3")
        .bytes(".weft.v1.Question")
        .bytes(".weft.v1.Answer")
        .codec_path("crate::codec::SmallBuffers")
        .compile_fds(descriptors)?;
    Ok(())
}
