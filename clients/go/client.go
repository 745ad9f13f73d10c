// Package qspec talks to a QSPEC server: it streams generated text, and turns failed calls into errors that name the
// offending fields and say when to try again.
//
// A context's deadline is the call's deadline, and cancelling it cancels the request on the server.
package qspec

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	qspecv1 "qspec.dev/qspec/v1"
)

// Client is a connection to one server. It is safe for concurrent use.
type Client struct {
	connection *grpc.ClientConn
	service    qspecv1.GenerationServiceClient
	clientID   string
}

// Dial prepares a connection to address, "HOST:PORT" or "unix:PATH". Nobody needs to listen there yet: the first call
// connects, and fails where it cannot.
func Dial(address string, options Options) (*Client, error) {
	if err := options.check(address); err != nil {
		return nil, err
	}
	// Dial and WithInsecure are the names that every release of grpc-go 1.x has.
	dialOptions := []grpc.DialOption{grpc.WithInsecure()}
	if options.TLS != nil {
		dialOptions = []grpc.DialOption{grpc.WithTransportCredentials(credentials.NewTLS(options.TLS.Clone()))}
	}
	if options.APIKey != "" {
		dialOptions = append(dialOptions, grpc.WithPerRPCCredentials(bearerToken(options.APIKey)))
	}
	connection, err := grpc.Dial(address, dialOptions...)
	if err != nil {
		return nil, err
	}
	service := qspecv1.NewGenerationServiceClient(connection)
	return &Client{connection: connection, service: service, clientID: options.ClientID}, nil
}

// Close ends the connection, and with it all calls.
func (c *Client) Close() error {
	return c.connection.Close()
}

// Generate starts to generate. What is wrong with the request is told by the stream's first Recv.
func (c *Client) Generate(ctx context.Context, request *qspecv1.GenerateRequest) (*Stream, error) {
	ctx, cancel := context.WithCancel(c.outgoing(ctx))
	calls, err := c.service.Generate(ctx, request)
	if err != nil {
		cancel()
		return nil, newError(err)
	}
	choices := 1
	if request.N != nil {
		choices = int(request.GetN())
	}
	return &Stream{pieces: calls, cancel: cancel, unfinished: choices}, nil
}

// ServerInfo tells what runs on the server; it answers while the model is being loaded, too.
func (c *Client) ServerInfo(ctx context.Context) (*qspecv1.GetServerInfoResponse, error) {
	info, err := c.service.GetServerInfo(c.outgoing(ctx), &qspecv1.GetServerInfoRequest{})
	if err != nil {
		return nil, newError(err)
	}
	return info, nil
}

// Tokenize gives the tokens of a text or a conversation, as Generate would see them.
func (c *Client) Tokenize(ctx context.Context, request *qspecv1.TokenizeRequest) ([]uint32, error) {
	response, err := c.service.Tokenize(c.outgoing(ctx), request)
	if err != nil {
		return nil, newError(err)
	}
	return response.GetTokenIds(), nil
}

func (c *Client) outgoing(ctx context.Context) context.Context {
	if c.clientID == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "qspec-client-id", c.clientID)
}
