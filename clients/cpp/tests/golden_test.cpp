// Each vector of a directory is read and written as bytes and as JSON; tools/golden_vectors.py says what has to come
// out.
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/message_differencer.h>

#include "qspec/v1/generation.pb.h"

namespace {

namespace pb = google::protobuf;
using Path = std::filesystem::path;

std::string read(const Path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string to_bytes(const pb::Message& message) {
  std::string bytes;
  {
    pb::io::StringOutputStream stream(&bytes);
    pb::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    message.SerializeToCodedStream(&coded);
  }
  return bytes;
}

bool same_json(const std::string& one, const std::string& other) {
  pb::Struct first, second;
  return pb::util::JsonStringToMessage(one, &first).ok() && pb::util::JsonStringToMessage(other, &second).ok() &&
         pb::util::MessageDifferencer::Equals(first, second);
}

// What is wrong with the vector; empty if nothing is.
std::string check(const Path& path) {
  const auto* descriptor =
      pb::DescriptorPool::generated_pool()->FindMessageTypeByName("qspec.v1." + path.parent_path().filename().string());
  if (descriptor == nullptr) {
    return "no such message";
  }
  const auto* prototype = pb::MessageFactory::generated_factory()->GetPrototype(descriptor);
  const std::string bytes = read(path);
  const std::string json = read(Path(path).replace_extension(".json"));

  const std::unique_ptr<pb::Message> message(prototype->New());
  if (!message->ParseFromString(bytes) || to_bytes(*message) != bytes) {
    return "bytes differ";
  }
  std::string written;
  if (!pb::util::MessageToJsonString(*message, &written).ok() || !same_json(written, json)) {
    return "JSON differs: " + written;
  }
  const std::unique_ptr<pb::Message> from_json(prototype->New());
  if (const auto status = pb::util::JsonStringToMessage(json, from_json.get()); !status.ok()) {
    return "JSON cannot be read: " + status.ToString();
  }
  const std::string known = to_bytes(*from_json);
  const bool unknown = path.filename().string().rfind("unknown_", 0) == 0;
  if (bytes.compare(0, known.size(), known) != 0 || unknown != (known.size() < bytes.size())) {
    return "bytes from JSON differ";
  }
  return "";
}

}  // namespace

int main(int argc, char** argv) {
  qspec::v1::GenerateRequest::descriptor();  // links the messages
  int passed = 0, failed = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(argc > 1 ? argv[1] : ".")) {
    if (entry.path().extension() != ".bin") {
      continue;
    }
    const std::string problem = check(entry.path());
    ++(problem.empty() ? passed : failed);
    if (!problem.empty()) {
      std::cerr << entry.path().string() << ": " << problem << "\n";
    }
  }
  std::cout << passed << " passed, " << failed << " failed\n";
  return failed == 0 && passed > 0 ? 0 : 1;
}
