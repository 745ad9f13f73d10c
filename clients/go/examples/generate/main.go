// Command generate streams the answer to one prompt. Ctrl-C cancels the request on the server.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"google.golang.org/grpc/codes"

	"qspec.dev/qspec"
	qspecv1 "qspec.dev/qspec/v1"
)

const (
	exitFailure = 1
	exitInput   = 2
	exitSignal  = 130
)

func main() {
	options, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err == nil {
		err = run(options)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, describe(err, options.address))
		os.Exit(exitCode(err))
	}
}

var errInterrupted = errors.New("interrupted")

// run prints the text as it comes, and figures at the end.
func run(options options) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	interrupted := ctx
	if options.timeout > 0 {
		timed, cancel := context.WithTimeout(ctx, options.timeout)
		defer cancel()
		ctx = timed
	}
	client, err := qspec.Dial(options.address, options.connection)
	if err != nil {
		return inputError{err}
	}
	defer client.Close()
	last, err := stream(ctx, client, options.request)
	if interrupted.Err() != nil {
		return errInterrupted
	}
	if err != nil {
		return err
	}
	reason := strings.ToLower(strings.TrimPrefix(last.GetFinishReason().String(), "FINISH_REASON_"))
	fmt.Fprintf(os.Stderr, "%d tokens, %.1f tokens/s, ended by %s\n", last.GetUsage().GetCompletionTokens(),
		last.GetUsage().GetTokensPerSecond(), strings.ReplaceAll(reason, "_", " "))
	return nil
}

// stream prints all pieces and returns the last one.
func stream(
	ctx context.Context, client *qspec.Client, request *qspecv1.GenerateRequest,
) (*qspecv1.GenerateResponse, error) {
	pieces, err := client.Generate(ctx, request)
	if err != nil {
		return nil, err
	}
	defer pieces.Cancel()
	var last *qspecv1.GenerateResponse
	for {
		piece, err := pieces.Recv()
		if err != nil && last != nil {
			fmt.Println() // what comes next starts on a line of its own
		}
		if errors.Is(err, io.EOF) {
			return last, nil
		}
		if err != nil {
			return nil, err
		}
		last = piece
		if _, err := io.WriteString(os.Stdout, piece.GetText()); err != nil {
			return nil, err
		}
	}
}

// describe is the one line that a failed run ends with.
func describe(err error, address string) string {
	var failed *qspec.Error
	switch {
	case errors.Is(err, errInterrupted):
		return err.Error()
	case errors.As(err, &failed) && failed.Code == codes.Unavailable && failed.Reason == "":
		return fmt.Sprintf("error: %s cannot be reached, or has gone away (%s)", address, err)
	}
	return "error: " + err.Error()
}

func exitCode(err error) int {
	var failed *qspec.Error
	switch {
	case errors.Is(err, errInterrupted):
		return exitSignal
	case errors.As(err, &inputError{}), errors.As(err, &failed) && failed.Code == codes.InvalidArgument:
		return exitInput
	}
	return exitFailure
}
