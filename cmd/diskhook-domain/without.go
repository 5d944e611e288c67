// SPDX-License-Identifier: Apache-2.0

//go:build !cgo || !libvirt_dlopen

package main

import "os"

// Without cgo there is no libvirt. This keeps `go build ./...` whole on a
// machine without a C compiler or libvirt's headers.
func main() {
	_, _ = os.Stdout.WriteString(`{"error":{"code":"precondition","message":"diskhook-domain: built without libvirt","hint":"build it with CGO_ENABLED=1 and -tags libvirt_dlopen, as make build does"}}` + "\n")
	os.Exit(1)
}
