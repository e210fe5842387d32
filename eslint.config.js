import js from '@eslint/js';
import {defineConfig, globalIgnores} from 'eslint/config';
import globals from 'globals';

export default defineConfig([
  globalIgnores(['**/vendor/', '.venv/', 'site/', 'build/', 'dist/', 'runs/']),
  {
    files: ['gradwatch/tensorboard_plugin/static/**/*.js', 'gradwatch/views/**/*.js'],
    languageOptions: {globals: globals.browser},
  },
  {
    files: ['tests/js/**/*.mjs', 'eslint.config.js'],
    languageOptions: {globals: globals.node},
  },
  {
    files: ['**/*.js', '**/*.mjs'],
    plugins: {js},
    extends: ['js/recommended'],
    linterOptions: {reportUnusedDisableDirectives: 'error'},
    rules: {
      complexity: ['error', 10], // as in Python
      'consistent-return': 'error',
      eqeqeq: 'error',
      'no-console': 'error',
      'no-implicit-globals': 'error',
      'no-restricted-properties': [
        'error',
        {property: 'innerHTML', message: 'Names from event files must never become markup. Use element() of dom.js.'},
        {property: 'outerHTML', message: 'Names from event files must never become markup. Use element() of dom.js.'},
        {property: 'insertAdjacentHTML', message: 'Names from event files must never become markup. Use element().'},
      ],
      'no-shadow': 'error',
      'no-unused-vars': ['error', {args: 'after-used', argsIgnorePattern: '^_'}],
      'no-var': 'error',
      'prefer-const': ['error', {destructuring: 'all'}],
    },
  },
]);
