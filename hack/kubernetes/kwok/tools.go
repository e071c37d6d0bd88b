//go:build tools

// Package kwok names the program that setup builds, so that `go mod tidy` keeps it.
package kwok

import _ "sigs.k8s.io/kwok/cmd/kwok"
