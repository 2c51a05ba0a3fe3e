// Package web answers HTTP: /healthz for a load balancer or a watcher that knows yes and no, /metrics for Prometheus. It
// looks at what it is given and decides nothing: Status comes from the daemon at every question.
package web
