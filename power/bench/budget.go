package main

import "context"

func benchBudget(context.Context, *hall) ([]result, error) { return nil, nil }
