package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Times of a question and its answer: whoever is slower does not hold a connection for ever.
const (
	readTime  = 10 * time.Second
	writeTime = 30 * time.Second
	closeTime = 2 * time.Second
)

// Handler answers /healthz and /metrics by what status says at that moment. status is called from several goroutines.
func Handler(status func() Status) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(newCollector(status))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		s := status()
		answer := struct {
			OK       bool     `json:"ok"`
			Problems []string `json:"problems"`
		}{len(s.Problems) == 0, append([]string{}, s.Problems...)}
		body, err := json.MarshalIndent(answer, "", "  ")
		if err != nil { // a bool and texts
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		if !answer.OK {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_, _ = w.Write(append(body, '\n')) // the asker has gone
	})
	return mux
}

// Server is a Handler on an address.
type Server struct {
	addr   string
	http   *http.Server
	failed chan error
	died   error // what came of failed
}

// Listen begins to answer on addr, host:port. Close ends it.
func Listen(addr string, status func() Status) (*Server, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	s := &Server{addr: addr, failed: make(chan error, 1),
		http: &http.Server{Handler: Handler(status), ReadTimeout: readTime, WriteTimeout: writeTime, IdleTimeout: writeTime, MaxHeaderBytes: 16 << 10}}
	go func() { s.failed <- s.http.Serve(l) }()
	return s, nil
}

// Addr is what Listen was given.
func (s *Server) Addr() string { return s.addr }

// Died is why the server has ended by itself; nil: it goes on. It is for the goroutine that calls Close.
func (s *Server) Died() error {
	if s.died == nil {
		select {
		case s.died = <-s.failed:
		default:
		}
	}
	return s.died
}

// Close ends the server; questions that are being answered get a moment.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTime)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = s.http.Close()
	}
	if s.Died() == nil {
		s.died = <-s.failed
	}
	if !errors.Is(s.died, http.ErrServerClosed) {
		err = errors.Join(err, s.died)
	}
	return err
}
