package qspec

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc/codes"

	qspecv1 "qspec.dev/qspec/v1"
)

// Stream is the text of one request, as it is decided.
type Stream struct {
	pieces     qspecv1.GenerationService_GenerateClient
	cancel     context.CancelFunc
	unfinished int
}

// Recv waits for the next piece. After the last one it returns io.EOF; any other error is an *Error.
func (s *Stream) Recv() (*qspecv1.GenerateResponse, error) {
	piece, err := s.pieces.Recv()
	if err == nil {
		if piece.GetFinishReason() != qspecv1.FinishReason_FINISH_REASON_UNSPECIFIED {
			s.unfinished--
		}
		return piece, nil
	}
	s.cancel()
	if !errors.Is(err, io.EOF) {
		return nil, newError(err)
	}
	if s.unfinished > 0 {
		return nil, &Error{Code: codes.DataLoss, Message: "the server ended the text without a reason"}
	}
	return nil, io.EOF
}

// Cancel ends the request on the server. It may be called at any time, more than once, and from any goroutine; a caller
// that does not read to the end has to call it.
func (s *Stream) Cancel() {
	s.cancel()
}
