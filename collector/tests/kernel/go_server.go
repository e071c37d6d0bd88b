// A server with crypto/tls that knows how many requests it was asked and how many connections it has: the tests of the
// kernel programs compare with it. It never asks anybody but itself, and that only for /fetch.
package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync/atomic"
)

var asked, connections atomic.Int64

// Makes the stack move while a request is under way.
func deep(levels int) int {
	var frame [512]byte
	if levels == 0 {
		return len(frame)
	}
	frame[levels%512] = byte(levels)
	return deep(levels-1) + int(frame[0])
}

func fetch(url string, http2 bool) error {
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: http2}
	defer transport.CloseIdleConnections()
	answer, err := (&http.Client{Transport: transport}).Get(url)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	_, err = io.ReadAll(answer.Body)
	return err
}

func main() {
	address := os.Args[1]
	serve := func(w http.ResponseWriter, r *http.Request) {
		count := asked.Add(1)
		io.Copy(io.Discard, r.Body)
		switch r.URL.Path {
		case "/count":
			fmt.Fprintf(w, "%d %d", count, connections.Load())
		case "/no":
			w.WriteHeader(http.StatusServiceUnavailable)
		case "/deep":
			fmt.Fprintf(w, "%d", deep(200))
		case "/fetch1", "/fetch2":
			if err := fetch("https://"+address+"/", r.URL.Path == "/fetch2"); err != nil {
				http.Error(w, err.Error(), http.StatusBadGateway)
			}
		default:
			io.WriteString(w, "hello")
		}
	}
	state := func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			connections.Add(1)
		case http.StateClosed:
			connections.Add(-1)
		}
	}
	server := http.Server{Addr: address, Handler: http.HandlerFunc(serve), ConnState: state}
	fmt.Fprintln(os.Stderr, server.ListenAndServeTLS("cert.pem", "key.pem"))
	os.Exit(1)
}
