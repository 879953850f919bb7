// Package server is what a site answers over HTTP: to its agents (Agent) and
// to people and programs (UI). It translates between wire types and the
// conductor, checks who asks, and decides nothing: what is asked becomes an
// intent or an observation.
//
// One route table (routes.go) is at once the mux, the check of roles and the
// OpenAPI document, so that no route can lack any of the three.
package server
