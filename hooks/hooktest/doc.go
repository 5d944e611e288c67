// SPDX-License-Identifier: Apache-2.0

// Package hooktest has what the tests of the hooks share: a host of its own
// below a temporary directory, and a stand-in for local copies that records
// what it was asked.
package hooktest
