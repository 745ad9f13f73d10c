package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"qspec.dev/qspec"
	qspecv1 "qspec.dev/qspec/v1"
)

type options struct {
	address    string
	connection qspec.Options
	request    *qspecv1.GenerateRequest
	timeout    time.Duration
}

// inputError is what the user can mend on the command line.
type inputError struct{ error }

// parse reads the command line. Options that are not given are not sent: the server knows their defaults.
func parse(arguments []string) (options, error) {
	flags := flag.NewFlagSet("generate", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	address := flags.String("address", "127.0.0.1:50051", "the server: `HOST:PORT` or unix:PATH")
	prompt := flags.String("prompt", "", "what to answer, as `TEXT`")
	raw := flags.Bool("raw", false, "continue the prompt as it is, without the model's chat template")
	maxTokens := flags.Uint("max-tokens", 0, "most tokens to make, as `N`")
	temperature := flags.Float64("temperature", 0, "softmax temperature `T`; 0 is greedy")
	seed := flags.Uint64("seed", 0, "makes the text reproducible, as `N`")
	timeout := flags.Float64("timeout", 0, "give up after so many `SECONDS`")
	tls := flags.Bool("tls", false, "encrypt, and trust the system's authorities")
	ca := flags.String("tls-ca", "", "encrypt, and trust the authorities in this `FILE` (PEM)")
	certificate := flags.String("tls-client-cert", "", "this client's certificate, a `FILE` (PEM)")
	key := flags.String("tls-client-key", "", "the key of --tls-client-cert, a `FILE` (PEM)")
	keyFile := flags.String("api-key-file", "", "`FILE` with the API key (default: the environment's QSPEC_API_KEY)")
	insecure := flags.Bool("insecure", false, "let the API key leave this machine in plain text")
	result := options{}
	if err := flags.Parse(arguments); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			flags.SetOutput(os.Stdout)
			flags.PrintDefaults()
			return result, err
		}
		return result, inputError{err}
	}
	given := map[string]bool{}
	flags.Visit(func(each *flag.Flag) { given[each.Name] = true })
	switch {
	case flags.NArg() > 0:
		return result, inputError{fmt.Errorf("%q is no option", flags.Arg(0))}
	case *prompt == "":
		return result, inputError{errors.New("--prompt: give at least one character")}
	case !utf8.ValidString(*prompt):
		return result, inputError{errors.New("--prompt: is not valid UTF-8")}
	case given["timeout"] && !(*timeout > 0 && *timeout < 1e9):
		return result, inputError{fmt.Errorf("--timeout: must be a number of seconds above 0, got %g", *timeout)}
	case (*certificate == "") != (*key == ""):
		return result, inputError{errors.New("--tls-client-cert and --tls-client-key go together")}
	case *maxTokens > 1<<32-1:
		return result, inputError{fmt.Errorf("--max-tokens: %d is too large", *maxTokens)}
	}
	result.address = *address
	result.timeout = time.Duration(*timeout * float64(time.Second))
	result.request = requestFor(*prompt, *raw)
	if given["max-tokens"] {
		result.request.MaxTokens = proto.Uint32(uint32(*maxTokens))
	}
	if given["temperature"] {
		result.request.Temperature = temperature
	}
	if given["seed"] {
		result.request.Seed = seed
	}
	connection := qspec.Options{APIKey: os.Getenv("QSPEC_API_KEY"), Insecure: *insecure}
	if *keyFile != "" {
		content, err := os.ReadFile(*keyFile)
		if err != nil {
			return result, inputError{fmt.Errorf("--api-key-file: %w", err)}
		}
		connection.APIKey = strings.TrimSpace(string(content))
	}
	if *tls || *ca != "" || *certificate != "" || *key != "" {
		config, err := qspec.LoadTLS(*ca, *certificate, *key)
		if err != nil {
			return result, inputError{fmt.Errorf("TLS: %w", err)}
		}
		connection.TLS = config
	}
	result.connection = connection
	return result, nil
}

// requestFor asks for the answer to a user's message, or raw for the continuation of a text.
func requestFor(prompt string, raw bool) *qspecv1.GenerateRequest {
	if raw {
		return &qspecv1.GenerateRequest{Prompt: &qspecv1.GenerateRequest_Text{Text: prompt}}
	}
	message := &qspecv1.ChatMessage{Role: qspecv1.ChatRole_CHAT_ROLE_USER, Content: prompt}
	chat := &qspecv1.ChatPrompt{Messages: []*qspecv1.ChatMessage{message}}
	return &qspecv1.GenerateRequest{Prompt: &qspecv1.GenerateRequest_Chat{Chat: chat}}
}
