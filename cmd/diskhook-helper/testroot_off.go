// SPDX-License-Identifier: Apache-2.0

//go:build !testroot

package main

import "diskhook/storage/host"

// The helper is moved and steered by nothing that its caller could set.
func layout() host.Layout { return host.Layout{} }
func programPath() string { return program }
