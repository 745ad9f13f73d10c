package qspec

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// FieldViolation says what is wrong with one field of a request.
type FieldViolation struct {
	Field       string
	Description string
}

// Error is a failed call: its status, with the details that the server sent.
type Error struct {
	// Code is gRPC's status code.
	Code codes.Code
	// Message is meant for people.
	Message string
	// Violations names every offending field of the request (with InvalidArgument).
	Violations []FieldViolation
	// Reason tells errors of one code apart, for example QUEUE_FULL from SLOW_READER; "" where the server gave none.
	Reason string
	// RetryAfter says when the same request may succeed; nil where the server did not say.
	RetryAfter *time.Duration
	cause      error
}

func newError(err error) *Error {
	received := status.Convert(err)
	result := &Error{Code: received.Code(), Message: received.Message(), cause: err}
	for _, detail := range received.Details() {
		switch detail := detail.(type) {
		case *errdetails.BadRequest:
			for _, violation := range detail.GetFieldViolations() {
				result.Violations = append(
					result.Violations, FieldViolation{violation.GetField(), violation.GetDescription()})
			}
		case *errdetails.ErrorInfo:
			result.Reason = detail.GetReason()
		case *errdetails.RetryInfo:
			delay := time.Duration(detail.GetRetryDelay().GetSeconds())*time.Second +
				time.Duration(detail.GetRetryDelay().GetNanos())
			result.RetryAfter = &delay
		}
	}
	return result
}

// Error is one line: the code's name, then the fields with what is wrong, or else the message.
func (e *Error) Error() string {
	text := strings.SplitN(e.Message, "\n", 2)[0]
	if len(e.Violations) > 0 {
		fields := make([]string, len(e.Violations))
		for i, violation := range e.Violations {
			fields[i] = violation.Field + ": " + violation.Description
		}
		text = strings.Join(fields, "; ")
	}
	if e.RetryAfter != nil {
		text += fmt.Sprintf("; try again in %.1f s", e.RetryAfter.Seconds())
	}
	return code.Code(e.Code).String() + ": " + text
}

// Unwrap gives the error of gRPC.
func (e *Error) Unwrap() error {
	return e.cause
}
