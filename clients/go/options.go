package qspec

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
)

// Options of a connection. The zero value means plain text, and no key.
type Options struct {
	// TLS encrypts the connection; nil means plain text. LoadTLS makes one from files.
	TLS *tls.Config
	// APIKey is sent with every call ("authorization: Bearer …").
	APIKey string
	// Insecure lets the key leave this machine in plain text, where Dial otherwise refuses.
	Insecure bool
	// ClientID tells this client's requests from those of others at the same address; waiting requests are served
	// fairly between clients.
	ClientID string
}

func (o Options) check(address string) error {
	if strings.HasPrefix(address, "unix:") {
		return nil
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%q is no address; write HOST:PORT or unix:PATH", address)
	}
	ip := net.ParseIP(host)
	local := host == "localhost" || ip != nil && ip.IsLoopback()
	if o.APIKey != "" && o.TLS == nil && !o.Insecure && !local {
		return errors.New("the API key would leave this machine in plain text: use TLS, or say that this is wanted (insecure)")
	}
	return nil
}

// LoadTLS reads PEM files: the certificates of the authorities to trust ("" for the system's), and this client's own
// certificate with its key (both "" for none).
func LoadTLS(caFile, certificateFile, keyFile string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s: no certificate in PEM format", caFile)
		}
	}
	if certificateFile == "" && keyFile == "" {
		return config, nil
	}
	certificate, err := tls.LoadX509KeyPair(certificateFile, keyFile)
	if err != nil {
		return nil, err
	}
	config.Certificates = []tls.Certificate{certificate}
	return config, nil
}

// bearerToken is the API key as gRPC's credentials of a call.
type bearerToken string

func (t bearerToken) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(t)}, nil
}

// RequireTransportSecurity is false because Options.check has decided.
func (t bearerToken) RequireTransportSecurity() bool {
	return false
}
