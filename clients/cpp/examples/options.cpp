#include "options.h"

#include <getopt.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <map>
#include <sstream>
#include <vector>

namespace {

struct Description {
  const char* name;
  const char* placeholder;  // Empty for an option without a value.
  const char* text;
};

constexpr Description kDescriptions[] = {
    {"address", "HOST:PORT", "the server, or unix:PATH (default: 127.0.0.1:50051)"},
    {"prompt", "TEXT", "what to answer"},
    {"raw", "", "continue the prompt as it is, without the model's chat template"},
    {"max-tokens", "N", "most tokens to make"},
    {"temperature", "T", "softmax temperature; 0 is greedy"},
    {"seed", "N", "makes the text reproducible"},
    {"timeout", "SECONDS", "give up after this time"},
    {"tls", "", "encrypt, and trust the system's authorities"},
    {"tls-ca", "FILE", "encrypt, and trust the authorities in this file (PEM)"},
    {"tls-client-cert", "FILE", "encrypt, and show this certificate (PEM)"},
    {"tls-client-key", "FILE", "its key (PEM)"},
    {"api-key-file", "FILE", "file with the API key (default: the environment's QSPEC_API_KEY)"},
    {"insecure", "", "let the API key leave this machine in plain text"},
    {"help", "", "show this"},
};

using Given = std::map<std::string, std::string>;

Given read_arguments(int argc, char** argv) {
  std::vector<option> known;
  for (const Description& each : kDescriptions) {
    known.push_back({each.name, *each.placeholder != '\0' ? required_argument : no_argument, nullptr, 0});
  }
  known.push_back({nullptr, 0, nullptr, 0});
  opterr = 0;
  Given given;
  int index = 0;
  for (int found; (found = getopt_long(argc, argv, ":", known.data(), &index)) != -1;) {
    if (found != 0) {
      const std::string problem = found == ':' ? ": a value is missing" : ": no such option, or it takes no value";
      throw InputError(argv[optind - 1] + problem);
    }
    given[known[static_cast<std::size_t>(index)].name] = optarg == nullptr ? "" : optarg;
  }
  if (optind < argc) {
    throw InputError(std::string(argv[optind]) + ": is no option");
  }
  return given;
}

template <typename Number>
Number whole_number(const std::string& name, const std::string& text) {
  Number value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    throw InputError("--" + name + ": must be a whole number from 0 to " +
                     std::to_string(std::numeric_limits<Number>::max()) + ", got " + text);
  }
  return value;
}

double number(const std::string& name, const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0') {
    throw InputError("--" + name + ": must be a number, got " + text);
  }
  return value;
}

std::string content(const Given& given, const std::string& name) {
  const auto path = given.find(name);
  if (path == given.end()) {
    return "";
  }
  std::ifstream file(path->second, std::ios::binary);
  std::ostringstream text;
  if (!file || !(text << file.rdbuf())) {
    throw InputError("--" + name + ": cannot read " + path->second + ": " + std::strerror(errno));
  }
  return text.str();
}

qspec::ConnectionOptions connection(const Given& given) {
  qspec::ConnectionOptions options;
  options.insecure = given.count("insecure") > 0;
  if (given.count("api-key-file") > 0) {
    options.api_key = content(given, "api-key-file");
    options.api_key.erase(options.api_key.find_last_not_of(" \t\r\n") + 1);
  } else if (const char* key = std::getenv("QSPEC_API_KEY")) {
    options.api_key = key;
  }
  if (given.count("tls-client-cert") != given.count("tls-client-key")) {
    throw InputError("--tls-client-cert and --tls-client-key go together");
  }
  if (given.count("tls") + given.count("tls-ca") + given.count("tls-client-cert") > 0) {
    options.tls = qspec::Tls{
        content(given, "tls-ca"), content(given, "tls-client-cert"), content(given, "tls-client-key")};
  }
  return options;
}

}  // namespace

std::optional<Options> parse(int argc, char** argv) {
  Given given = read_arguments(argc, argv);
  if (given.count("help") > 0) {
    return std::nullopt;
  }
  const std::string prompt = given["prompt"];
  if (prompt.empty()) {
    throw InputError("--prompt: give at least one character");
  }
  Options options;
  if (given.count("raw") > 0) {
    options.request.set_text(prompt);
  } else {
    auto* message = options.request.mutable_chat()->add_messages();
    message->set_role(qspec::v1::CHAT_ROLE_USER);
    message->set_content(prompt);
  }
  if (given.count("address") > 0) {
    options.address = given["address"];
  }
  if (given.count("max-tokens") > 0) {
    options.request.set_max_tokens(whole_number<std::uint32_t>("max-tokens", given["max-tokens"]));
  }
  if (given.count("seed") > 0) {
    options.request.set_seed(whole_number<std::uint64_t>("seed", given["seed"]));
  }
  if (given.count("temperature") > 0) {
    options.request.set_temperature(number("temperature", given["temperature"]));
  }
  if (given.count("timeout") > 0) {
    const double seconds = number("timeout", given["timeout"]);
    if (!(seconds > 0 && seconds < 1e9)) {
      throw InputError("--timeout: must be a number of seconds above 0, got " + given["timeout"]);
    }
    options.timeout = std::chrono::ceil<std::chrono::milliseconds>(std::chrono::duration<double>(seconds));
  }
  options.connection = connection(given);
  return options;
}

std::string help() {
  std::string text = "qspec_generate --prompt TEXT [options]\n";
  for (const Description& each : kDescriptions) {
    std::string option = std::string("  --") + each.name + " " + each.placeholder;
    option.resize(std::max<std::size_t>(option.size() + 1, 28), ' ');
    text += option + each.text + "\n";
  }
  return text;
}
