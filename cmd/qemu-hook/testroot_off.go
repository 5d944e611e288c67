// SPDX-License-Identifier: Apache-2.0

//go:build !testroot

package main

// A real hook is moved and steered by nothing.
func root() string        { return "" }
func testEnv() []string   { return nil }
func programPath() string { return program }
